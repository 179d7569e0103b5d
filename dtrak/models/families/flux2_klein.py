"""FLUX.2 klein: FLUX.2 with Qwen3 as text encoder, and classifier-free guidance in its base versions."""

from pathlib import Path

from diffusers import Flux2KleinPipeline
from torch import Tensor

from dtrak.models.families.base import Blank, Loader
from dtrak.models.families.flux2 import Flux2, blank_of


class Flux2Klein(Flux2):
    """FLUX.2 klein."""

    def guided(self, toward: Tensor, away: Tensor, scale: float) -> Tensor:
        """See :class:`DiffusionModel`; distilled versions take no guidance."""
        return toward if self.pipe.config.is_distilled else super().guided(toward, away, scale)


def blank(resolution: int, path: Path | None) -> Blank:
    """See :class:`Loader`; klein 4B's size without a path."""
    usual = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
             "guidance_embeds": False}  # fmt: skip
    return blank_of(resolution, path, usual)


LOADER = Loader.of(Flux2KleinPipeline, Flux2Klein, blank, "bfloat16")
