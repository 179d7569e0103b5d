"""Stable Diffusion 3 and 3.5: flow matching, conditioned on two CLIPs and T5.

Predictions are velocities v = ε − x₀; the network takes the time as 1000 σ.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.families.base import Blank, Loader
from dtrak.models.families.flow import FlowModel, Told
from dtrak.models.families.prompts import Parts
from dtrak.models.flow_matching import FlowMatching
from dtrak.utils.files import read_note

TOKENS = 256  # of T5; CLIP adds 77


class StableDiffusion3(FlowModel):
    """Stable Diffusion 3 or 3.5."""

    even = False
    lora_modules = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    @torch.no_grad()
    def embed(self, prompt: str) -> Parts:
        """See :class:`PipelineModel`."""
        device = self.pipe.text_encoder.device
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            prompt, None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        return {"encoder_hidden_states": tokens[0], "pooled_projections": pooled[0]}

    def process_of(self, pipe: Any, shape: tuple[int, int, int]) -> FlowMatching:
        """See :class:`FlowModel`."""
        self.patch = pipe.transformer.config.patch_size
        return super().process_of(pipe, shape)

    def velocity(self, network: Network, x: Tensor, sigmas: Tensor, told: Told) -> Tensor:
        """See :class:`FlowModel`."""
        return network(hidden_states=x, timestep=1000 * sigmas, **told).sample


def blank(resolution: int, path: Path | None) -> Blank:
    """See :class:`Loader`; Stable Diffusion 3.5 medium's size without a path."""
    given = read_note(path / "transformer" / "config.json") if path else {}
    usual = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
             "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}  # fmt: skip
    network: Any = SD3Transformer2DModel.from_config(given or usual)
    side, config = resolution // 8, network.config
    x = torch.zeros(1, config.in_channels, side, side)
    told = {
        "encoder_hidden_states": torch.zeros(1, 77 + TOKENS, config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
    }
    return Blank(network, x, lambda: network(hidden_states=x, timestep=torch.zeros(1), **told).sample)


LOADER = Loader.of(StableDiffusion3Pipeline, StableDiffusion3, blank)
