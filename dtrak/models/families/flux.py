"""FLUX.1 (dev, schnell): flow matching on packed latents, conditioned on CLIP's pooled and T5's token embeddings.

The network takes σ and, in dev, a guidance scale as inputs. Predictions are velocities v = ε − x₀.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.families.base import Blank, Loader
from dtrak.models.families.flow import DistilledFlow, Told, image_of, tokens_of
from dtrak.models.families.prompts import Parts
from dtrak.utils.files import read_note

TOKENS, TOKENS_SCHNELL = 512, 256  # of T5


class Flux(DistilledFlow):
    """FLUX.1."""

    lora_modules = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
                    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")  # fmt: skip

    @torch.no_grad()
    def embed(self, prompt: str) -> Parts:
        """See :class:`PipelineModel`."""
        device = self.pipe.text_encoder.device
        most = TOKENS_SCHNELL if self.guidance is None else TOKENS
        tokens, pooled, _ = self.pipe.encode_prompt(prompt, prompt_2=None, device=device, max_sequence_length=most)
        return {"encoder_hidden_states": tokens[0], "pooled_projections": pooled[0]}

    @staticmethod
    def guided_velocity(network: Network, x: Tensor, sigmas: Tensor, told: Told, guidance: float | None) -> Tensor:
        """Pack 2×2 patches, run the transformer with positions, unpack."""
        folded = F.pixel_unshuffle(x, 2)
        tokens = told["encoder_hidden_states"]
        assert tokens is not None
        rows, columns = (torch.arange(side, device=x.device) for side in folded.shape[2:])
        places = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns).to(x.dtype)
        found = network(
            hidden_states=tokens_of(folded), timestep=sigmas,
            guidance=None if guidance is None else torch.full_like(sigmas, guidance), img_ids=places,
            txt_ids=torch.zeros(tokens.shape[1], 3, device=x.device, dtype=x.dtype), **told,
        ).sample  # fmt: skip
        return F.pixel_shuffle(image_of(found, folded), 2)


def blank(resolution: int, path: Path | None) -> Blank:
    """See :class:`Loader`."""
    given = read_note(path / "transformer" / "config.json") if path else {}
    network: Any = FluxTransformer2DModel.from_config(given or {"guidance_embeds": True})
    side, config = resolution // 8, network.config
    x = torch.zeros(1, config.in_channels // 4, side, side)
    told: Told = {
        "encoder_hidden_states": torch.zeros(
            1, TOKENS if config.guidance_embeds else TOKENS_SCHNELL, config.joint_attention_dim
        ),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
    }
    guidance = 3.5 if config.guidance_embeds else None
    return Blank(network, x, lambda: Flux.guided_velocity(network, x, torch.zeros(1), told, guidance))


LOADER = Loader.of(FluxPipeline, Flux, blank, "bfloat16")
