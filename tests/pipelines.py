"""Tiny pipelines of the text-to-image families: every part real, all weights random, each below a megabyte."""

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.stable_diffusion import tokenizer

SIDE = 16


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


PIPELINES = {
    "sdxl": sdxl, "sdxl-v": lambda: sdxl("v_prediction"), "sd3": sd3, "flux": flux, "flux-schnell": lambda: flux(False)
}  # fmt: skip


def write_pipeline(name, folder):
    """Save a pipeline as ``save_pretrained`` does."""
    torch.manual_seed(0)
    PIPELINES[name]().save_pretrained(folder)
    return folder
