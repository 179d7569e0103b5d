"""Tiny pipelines of the text-to-image families: every part real, all weights random, each below a megabyte."""

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from dtrak.models.families import loader_of
from tests.stable_diffusion import tokenizer

SIDE = 16
PROMPTS = ["a round painting", "a square painting"]
WHOLE = ["sdxl", "sd3", "flux", "flux2-klein", "qwen-image", "z-image"]  # a pipeline of each family


def clip(width=16, projection=None):
    """A CLIP text encoder of two layers."""
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id, projection_dim=projection or width,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5(width=16):
    """A T5 encoder of one layer and its tokenizer of single letters."""
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    words = T5Tokenizer(vocab=letters, extra_ids=0)
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return T5EncoderModel(config), words


def vae(channels=4, **changes):
    """An autoencoder that halves the side."""
    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **changes,
    )  # fmt: skip


def sdxl(prediction="epsilon"):
    """Stable Diffusion XL."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True,
        transformer_layers_per_block=(1, 1), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    return StableDiffusionXLPipeline(
        vae(scaling_factor=0.13025), clip(16, 16), clip(16, 16), tokenizer(), tokenizer(), unet, scheduler
    )


def sd3(**scheduler):
    """Stable Diffusion 3."""
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    encoder, words = t5(32)
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae(scaling_factor=1.5305, shift_factor=0.0609), clip(16, 16), tokenizer(), clip(16, 16), tokenizer(), encoder,
        words,
    )  # fmt: skip


def flux(guidance=True):
    """FLUX.1, dev or (without guidance as an input) schnell."""
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=guidance, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    encoder, words = t5(16)
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0} if guidance else {"shift": 1.0}
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**dynamic), vae(scaling_factor=0.3611, shift_factor=0.1159), clip(16),
        tokenizer(), encoder, words, transformer,
    )  # fmt: skip


def letters(content="{{ m.content }}"):
    """A tokenizer of single letters with a chat template, as language models have."""
    words = ["<|endoftext|>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", *(chr(code) for code in range(33, 127)), "Ġ", "Ċ"]
    found = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    found.chat_template = "{% for m in messages %}{{ m.role }}: " + content + "{% endfor %}"
    return found


def qwen3(width=8, layers=3):
    """A Qwen3."""
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(letters()), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    ))  # fmt: skip


def flux2(klein=False, distilled=False):
    """FLUX.2, dev or klein."""
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=not klein,
    )  # fmt: skip
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    torch.nn.init.normal_(autoencoder.bn.running_mean)
    torch.nn.init.uniform_(autoencoder.bn.running_var, 0.5, 2)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    if klein:
        return Flux2KleinPipeline(scheduler, autoencoder, qwen3(layers=28), letters(), transformer, distilled)
    model = Mistral3ForConditionalGeneration(Mistral3Config(
        text_config={
            "model_type": "mistral", "vocab_size": len(letters()), "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 30, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        },
        vision_config={
            "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "head_dim": 4, "image_size": 32, "patch_size": 8,
        },
        image_token_index=1,
    ))  # fmt: skip
    parts = "{% for c in m.content %}{{ c.text }}{% endfor %}"  # its processor, which needs torchvision, does the same
    return Flux2Pipeline(scheduler, autoencoder, model, letters(parts), transformer)


def qwen_image():
    """Qwen-Image."""
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    autoencoder = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[1.5, 2.0, 0.5, 1.0],
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(letters()), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1000.0},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
    ))  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    return QwenImagePipeline(scheduler, autoencoder, model, letters(), transformer)


def z_image():
    """Z-Image."""
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
        axes_dims=[4, 2, 2], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0), vae(scaling_factor=0.3611, shift_factor=0.1159), qwen3(),
        letters(), transformer,
    )  # fmt: skip


PIPELINES = {
    "sdxl": sdxl, "sdxl-v": lambda: sdxl("v_prediction"), "sd3": sd3, "flux": flux, "flux-schnell": lambda: flux(False),
    "flux2": flux2, "flux2-klein": lambda: flux2(True), "qwen-image": qwen_image, "z-image": z_image,
}  # fmt: skip


def write_pipeline(name, folder):
    """Save a pipeline as ``save_pretrained`` does."""
    torch.manual_seed(0)
    PIPELINES[name]().save_pretrained(folder)
    return folder


def loaded(written, name):
    """The model of a pipeline in a folder of :func:`write_pipeline`'s."""
    path = written / name
    return loader_of(path).load(path, SIDE, None, torch.float32, PROMPTS, 3.5)


def pixels(count):
    """Images of noise."""
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
