"""Train the demo's base, a tiny Stable Diffusion, from scratch on drawings that are not faces.

    python scripts/train_base.py base.parquet OUT [--autoencoder-seconds S] [--network-seconds S]
        [--start BASE] [--flow]

Three parts, each skipped where OUT already has it: a tokenizer (BPE on the captions), an autoencoder
(64×64×3 → 16×16×8), and a UNet with cross-attention trained together with its text encoder. The result is a
``StableDiffusionPipeline`` in half precision. Runs on a GPU in minutes, on a processor in hours; every minute the
state is saved, and a run that was killed goes on from there. ``--start`` goes on from the weights of an earlier base.
``--flow`` trains the network by flow matching, with the earlier base's text encoder as it is.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from averaged_training import Schedule, Training
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SIDE, CHANNELS, TOKENS, WORDS, TEXT = 64, 8, 24, 2048, 128
KL, GRADIENT = 1e-4, 0.5  # weights beside the mean absolute error
GAMMA = 5.0  # min-SNR
ALL, NAME, STYLE = 0.75, 0.85, 0.90  # shares of captions told whole, without style, as style alone; else not at all


def new_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of its own."""
    letters = sorted({c for caption in captions for c in caption.lower() if not c.isspace()})
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    start = CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=TOKENS)
    return start.train_new_from_iterator(captions, vocab_size=WORDS)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers of width 128."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT, intermediate_size=4 * TEXT, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=TOKENS, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def new_autoencoder() -> AutoencoderKL:
    """1.4 M weights, a fifth of the work of Stable Diffusion's proportions."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 96), layers_per_block=1, norm_num_groups=8, latent_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, sample_size=SIDE,
        scaling_factor=1.0,
    )  # fmt: skip


def new_network() -> UNet2DConditionModel:
    """7.0 M weights; attention at 8×8 and 4×4."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=(64, 128, 128),
        layers_per_block=1, norm_num_groups=16, cross_attention_dim=TEXT, attention_head_dim=(2, 4, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        resnet_time_scale_shift="scale_shift", use_linear_projection=True,
    )  # fmt: skip


def new_scheduler() -> DDPMScheduler:
    """The paper's: linear β from 1e-4 to 0.02, ε-prediction."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)


def narrow(device: torch.device) -> bool:
    """Whether bfloat16 is fast: on a GPU, and on processors with matrix units for it."""
    return device.type == "cuda" or torch.cpu._is_amx_tile_supported()


def compiled(module: nn.Module, device: torch.device) -> Callable[..., Any]:
    """The module as ``torch.compile`` makes it, where bfloat16 is fast: half the time; else as it is."""
    return torch.compile(module) if narrow(device) else module


def pixels_of(table: list[dict[str, Any]]) -> Tensor:
    """All pictures as 8-bit numbers, (n, 3, 64, 64)."""
    rows = [np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in table]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def differences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train_autoencoder(pixels: Tensor, device: torch.device, state: Path, seconds: float, steps: int) -> AutoencoderKL:
    """Mean absolute error of pixels and of their differences, and a little Kullback–Leibler divergence."""
    vae = new_autoencoder().to(device, memory_format=torch.channels_last)
    pixels = pixels.to(device)

    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.vae.quant_conv(self.vae.encoder(x)).float().chunk(2, 1)
            log_variance = log_variance.clamp(-30, 20)
            z = mean + (0.5 * log_variance).exp() * noise
            return self.vae.decoder(self.vae.post_quant_conv(z)).float(), mean, log_variance

    network = compiled(Pass(), device)

    def objective(batch: int, random: torch.Generator) -> Tensor:
        chosen = torch.randint(len(pixels), (batch,), generator=random, device=device)
        x = (pixels[chosen].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(batch, CHANNELS, SIDE // 4, SIDE // 4, generator=random, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow(device)):
            drawn, mean, log_variance = network(x, noise)
        across, down = (F.l1_loss(a, b) for a, b in zip(differences(drawn), differences(x), strict=True))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return F.l1_loss(drawn, x) + GRADIENT * (across + down) + KL * divergence

    schedule = Schedule(128 if device.type == "cuda" else 16, 1e-3, 0.999, steps)
    trained: Any = Training({"vae": vae}, objective, schedule, device, state).run(seconds)["vae"]
    normalise(trained, pixels)
    return trained


@torch.no_grad()
def posterior(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every picture's latents."""
    parts = [vae.encode(rows.float() / 127.5 - 1).latent_dist for rows in pixels.split(512)]
    return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])


@torch.no_grad()
def normalise(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Give each channel of the latents mean 0 and variance 1, inside the 1×1 convolutions on either side."""
    mean, _ = posterior(vae, pixels)
    centre, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    into: Any = vae.quant_conv
    out: Any = vae.post_quant_conv
    into.weight[:CHANNELS] /= scale[:, None, None, None]
    into.bias[:CHANNELS] = (into.bias[:CHANNELS] - centre) / scale
    into.bias[CHANNELS:] -= 2 * scale.log()
    out.bias += out.weight[:, :, 0, 0] @ centre
    out.weight *= scale[None, :, None, None]


def train_network(
    table: list[dict[str, Any]],
    latents: tuple[Tensor, Tensor],
    tokenizer: CLIPTokenizer,
    device: torch.device,
    state: Path,
    seconds: float,
    steps: int,
    start: Path | None,
    flow: bool,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """ε-prediction with min-SNR weights (Hang et al., 2023), network and text encoder together.

    With ``flow``: velocities ε − x at uniform noise levels (Lipman et al., 2023), the network alone.
    """
    unet, text = new_network().to(device), new_text_encoder(tokenizer).to(device)
    if start is not None:
        for module, part in ((unet, "unet"), (text, "text_encoder")):
            module.load_state_dict(type(module).from_pretrained(start / part).float().state_dict())
    # Attention in bfloat16 over so few tokens is slow in PyTorch's fused kernel for processors.
    if device.type == "cpu" and narrow(device):
        unet.set_attn_processor(AttnProcessor())
    network = compiled(unet, device)
    mean, deviation = latents
    text.requires_grad_(not flow)
    modules = {"unet": unet} if flow else {"unet": unet, "text": text}
    alphas = new_scheduler().alphas_cumprod.to(device)
    told = [[row["caption"] for row in table], [row["expression"] for row in table], [row["label"] for row in table]]
    told.append([""] * len(table))
    tokens = torch.stack([
        tokenizer(t, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
        for t in told
    ]).to(device)  # fmt: skip

    def objective(batch: int, random: torch.Generator) -> Tensor:
        draw = {"generator": random, "device": device}
        chosen = torch.randint(len(mean), (batch,), **draw)
        x = mean[chosen] + deviation[chosen] * torch.randn(batch, *mean.shape[1:], **draw)
        share = torch.rand(batch, **draw)
        which = (share > ALL).long() + (share > NAME) + (share > STYLE)
        # One timestep from each of ``batch`` equal parts of the range: less noise than independent draws.
        places = (torch.arange(batch, device=device) + torch.rand(batch, **draw)) / batch
        timesteps = (places * 1000).long()
        noise = torch.randn(x.shape, **draw)
        if flow:
            level = places.view(-1, 1, 1, 1)
            noisy, target, clock = (1 - level) * x + level * noise, noise - x, 1000 * places
            weights = torch.ones_like(places)
        else:
            alpha = alphas[timesteps].view(-1, 1, 1, 1)
            noisy, target, clock = alpha.sqrt() * x + (1 - alpha).sqrt() * noise, noise, timesteps
            weights = (GAMMA * (1 - alphas[timesteps]) / alphas[timesteps]).clamp(max=1)
        condition = text(tokens[which, chosen])[0]
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow(device)):
            predicted = network(noisy, clock, encoder_hidden_states=condition).sample.float()
        return (weights * (predicted - target).square().flatten(1).mean(1)).mean()

    large = device.type == "cuda"
    schedule = Schedule(512, 2e-3, 0.9995, steps) if large else Schedule(48, 1e-3, 0.999, steps)
    trained: Any = Training(modules, objective, schedule, device, state).run(seconds)
    return trained["unet"], text if flow else trained["text"]


def contact_sheet(pipeline: StableDiffusionPipeline, captions: list[str], path: Path, columns: int = 12) -> None:
    """Draw the captions with seeds 0, 1, … and lay them out in rows."""
    random = [torch.Generator("cpu").manual_seed(i) for i in range(len(captions))]
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(captions, num_inference_steps=50, guidance_scale=2.0, height=SIDE, width=SIDE, generator=random)
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for i, picture in enumerate(drawn.images):
        sheet.paste(picture, (i % columns * SIDE, i // columns * SIDE))
    sheet.save(path)


def parts(out: Path) -> Iterator[str]:
    """The parts that are still to be made."""
    for part, folder in (("tokenizer", "tokenizer"), ("autoencoder", "vae"), ("network", "unet")):
        if not (out / folder).is_dir():
            yield part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--autoencoder-seconds", type=float, default=0, help="wall time; sets the steps from the speed")
    parser.add_argument("--network-seconds", type=float, default=0)
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--network-steps", type=int, default=20000)
    parser.add_argument("--start", type=Path, help="an earlier base whose network and text encoder to go on from")
    parser.add_argument("--flow", action="store_true", help="flow matching, with the start's text encoder as it is")
    parser.add_argument("--only", choices=("tokenizer", "autoencoder", "network"))
    arguments = parser.parse_args()
    if arguments.flow and not arguments.start:
        parser.error("--flow needs --start, whose text encoder it takes")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    table = pq.read_table(arguments.data).to_pylist()
    missing = [p for p in parts(out) if arguments.only in (None, p)]
    if "tokenizer" in missing:
        new_tokenizer([row["caption"] for row in table]).save_pretrained(out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    pixels = pixels_of(table) if {"autoencoder", "network"} & set(missing) else torch.empty(0)
    if "autoencoder" in missing:
        print("autoencoder", flush=True)
        vae = train_autoencoder(
            pixels, device, out / "autoencoder.pt", arguments.autoencoder_seconds, arguments.autoencoder_steps
        )
        vae.half().save_pretrained(out / "vae")
    if "network" in missing and (out / "vae").is_dir():
        print("network", flush=True)
        vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device)
        vae.register_to_config(_name_or_path="")  # no path of this machine
        latents = posterior(vae, pixels.to(device))
        unet, text = train_network(
            table, latents, tokenizer, device, out / "network.pt", arguments.network_seconds, arguments.network_steps,
            arguments.start, arguments.flow,
        )  # fmt: skip
        scheduler: Any = DDIMScheduler.from_config(new_scheduler().config, set_alpha_to_one=False, steps_offset=1)
        if arguments.flow:
            scheduler = FlowMatchEulerDiscreteScheduler()
        pipeline = StableDiffusionPipeline(
            vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
        )
        pipeline.to(torch.float16).save_pretrained(out)
        if arguments.flow:
            return  # diffusers has no pipeline that samples such a network; the study's own sampler does
        captions = [row["caption"] for row in table[:: len(table) // 96]][:96]
        contact_sheet(pipeline.to(torch.float32), captions, out / "contact_sheet.png")


if __name__ == "__main__":
    main()
