"""FLUX.1 (dev, schnell): flow matching on packed latents, conditioned on CLIP's pooled and T5's token embeddings.

The network takes σ and, in dev, a guidance scale as inputs. Predictions are velocities v = ε − x₀.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.families.base import Blank, Loader, Parts, PipelineModel, image_of, tokens_of
from dtrak.models.process import FlowMatching
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import read_note

TOKENS, TOKENS_SCHNELL = 512, 256  # of T5


class Flux(PipelineModel):
    """FLUX.1."""

    lora_modules = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
                    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")  # fmt: skip

    def __init__(
        self, pipe: Any, network: Any, resolution: int, dtype: torch.dtype, prompts: Sequence[str] = (),
        guidance: float = 1.0,
    ):  # fmt: skip
        super().__init__(pipe, network, resolution, dtype, prompts)
        _, height, width = self.latent_shape
        if height % 2 or width % 2:
            raise DtrakError(f"Resolution {resolution} is not a multiple of 16.", hint="Change resolution.")
        self.guidance = guidance if network.config.guidance_embeds else None
        self.extra = (self.guidance,)

    @torch.no_grad()
    def embed(self, prompt: str) -> Parts:
        """See :class:`PipelineModel`."""
        device = self.pipe.text_encoder.device
        most = TOKENS_SCHNELL if self.guidance is None else TOKENS
        tokens, pooled, _ = self.pipe.encode_prompt(prompt, prompt_2=None, device=device, max_sequence_length=most)
        return {"encoder_hidden_states": tokens[0], "pooled_projections": pooled[0]}

    def process_of(self, pipe: Any, shape: tuple[int, int, int]) -> FlowMatching:
        """See :class:`PipelineModel`."""
        return FlowMatching(pipe.scheduler, shape[1] * shape[2] // 4, even=True)

    def call(self, network: Network, x: Tensor, times: Tensor, told: dict[str, Tensor | None]) -> Tensor:
        """See :class:`DiffusionModel`."""
        sigmas = self.process.level(times).to(x.device)
        return predict(network, x, sigmas, told, self.guidance)


def predict(
    network: Network, x: Tensor, sigmas: Tensor, told: dict[str, Tensor | None], guidance: float | None
) -> Tensor:
    """The velocity at x: pack 2×2 patches, run the transformer with positions, unpack."""
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
    told: dict[str, Tensor | None] = {
        "encoder_hidden_states": torch.zeros(
            1, TOKENS if config.guidance_embeds else TOKENS_SCHNELL, config.joint_attention_dim
        ),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
    }
    guidance = 3.5 if config.guidance_embeds else None
    return Blank(network, x, lambda: predict(network, x, torch.zeros(1), told, guidance))


LOADER = Loader.of(FluxPipeline, Flux, blank)
