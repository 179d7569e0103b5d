"""Stable Diffusion XL: a UNet conditioned on two CLIPs and on the image's size.

It predicts ε or v, or the velocity where the pipeline's scheduler is that of flow matching.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.families.base import Blank, Loader, PipelineModel
from dtrak.models.families.prompts import Parts
from dtrak.models.families.schedulers import process_of
from dtrak.models.process import NoiseProcess
from dtrak.utils.files import read_note

USUAL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


class StableDiffusionXL(PipelineModel):
    """Stable Diffusion XL; images count as uncropped, of the study's resolution."""

    part = "unet"

    @torch.no_grad()
    def embed(self, prompt: str) -> Parts:
        """See :class:`PipelineModel`."""
        device = self.pipe.text_encoder_2.device
        tokens, _, pooled, _ = self.pipe.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
        side = self.resolution
        sizes = torch.tensor([side, side, 0, 0, side, side], dtype=pooled.dtype, device=device)
        return {"encoder_hidden_states": tokens[0], "text_embeds": pooled[0], "time_ids": sizes}

    def embed_free(self, negative: str) -> Parts:
        """See :class:`PipelineModel`; zeros for an empty prompt where the pipeline says so."""
        parts = self.embed(negative)
        if not negative and self.pipe.config.force_zeros_for_empty_prompt:
            parts |= {name: torch.zeros_like(parts[name]) for name in ("encoder_hidden_states", "text_embeds")}
        return parts

    def process_of(self, pipe: Any, shape: tuple[int, int, int]) -> NoiseProcess:
        """See :class:`PipelineModel`.

        Raises:
            DtrakError: it is not supported, as EDM variants.
        """
        return process_of(pipe.scheduler, shape[1] * shape[2])

    def call(self, network: Network, x: Tensor, times: Tensor, told: dict[str, Tensor | None]) -> Tensor:
        """See :class:`DiffusionModel`."""
        added = {name: told[name] for name in ("text_embeds", "time_ids")}
        tokens = told["encoder_hidden_states"]
        return network(x, self.process.clock(times), encoder_hidden_states=tokens, added_cond_kwargs=added).sample


def blank(resolution: int, path: Path | None) -> Blank:
    """See :class:`Loader`."""
    given = read_note(path / "unet" / "config.json") if path else {}
    network: Any = UNet2DConditionModel.from_config(given or USUAL)
    side, config = resolution // 8, network.config
    x = torch.zeros(1, config.in_channels, side, side)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    tokens = torch.zeros(1, 77, config.cross_attention_dim)
    added = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
    return Blank(
        network, x, lambda: network(x, torch.zeros(1), encoder_hidden_states=tokens, added_cond_kwargs=added).sample
    )


LOADER = Loader.of(StableDiffusionXLPipeline, StableDiffusionXL, blank)
