"""A Stable Diffusion of a few hundred kilobytes: every part real, all weights random."""

import numpy as np
import torch
import yaml
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dtrak.build.features import build_features, build_indexes
from dtrak.config import load_study
from dtrak.data import prepare
from dtrak.execution.engines import Local
from dtrak.study.folder import StudyFolder
from dtrak.training.study import train_study

SIDE = 16
STYLES = ("round", "square")


def tokenizer():
    """Single characters, and the end of a word."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=24)


def write_stable_diffusion(folder, seed=0):
    """A pipeline of Stable Diffusion 1.x's classes, as ``save_pretrained`` writes it."""
    torch.manual_seed(seed)
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=24, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    )
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), words, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)


def write_paintings(folder, count=12):
    """Pictures of two styles with captions and artists."""
    lines = ["file_name,label,caption,artist"]
    folder.mkdir(parents=True)
    for i in range(count):
        random = np.random.default_rng(i)
        pixels = np.tile(random.integers(0, 256, 3, np.uint8), (SIDE, SIDE, 1))
        pixels[: SIDE // 2, i % SIDE :] = random.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{STYLES[i % 2]},a {STYLES[i % 2]} painting,artist {i % 3}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def build_paintings(folder):
    """Base, pictures and study in ``folder``, trained and built in its workspace; DTRAK_WORKSPACE must name that."""
    write_stable_diffusion(folder / "base")
    write_paintings(folder / "paintings")
    study = StudyFolder(load_study(str(write_lora_study(folder))))
    prepare(study.study, study.data)
    train_study(study)
    build_indexes(study, build_features(study, Local(1)))


def write_lora_study(folder, **model):
    """The YAML of a study that fine-tunes the base by LoRA."""
    sets = [
        {"output": output, "timesteps": 4, "projection_dim": 48} for output in ("mean-squared-l2-norm", "loss")
    ]  # fmt: skip
    content = {
        "title": "Tiny paintings",
        "data": {"kind": "imagefolder", "path": "paintings", "holdout": 0.17},
        "resolution": SIDE,
        "guidance": 2.0,
        "model": {"kind": "text-to-image", "path": "base", **model},
        "training": {
            "method": "lora", "rank": 2, "alpha": 2, "lora_modules": ["to_q", "to_k", "to_v", "to_out.0"],
            "lora_init": "gaussian", "steps": 4, "batch_size": 4, "warmup": 1, "learning_rate": 0.01, "clip": 1.0,
            "dropout": 0.1, "dropout_modules": "attn", "flip": True, "min_snr_gamma": None,
        },
        "features": sets,
        "truth": {"generated": 2, "timesteps": 4, "draws": 2},
    }  # fmt: skip
    (folder / "paintings.yaml").write_text(yaml.safe_dump(content))
    return folder / "paintings.yaml"
