"""FLUX.2 dev: flow matching on folded, normalised latents, conditioned on three layers of a language model.

The network takes σ and a guidance scale as inputs. Predictions are velocities v = ε − x₀.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2Pipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.codec import FoldedVaeCodec
from dtrak.models.families.base import Blank, Loader
from dtrak.models.families.flow import DistilledFlow, Told, image_of, tokens_of
from dtrak.models.families.prompts import Parts
from dtrak.utils.files import read_note

TOKENS = 512


class Flux2(DistilledFlow):
    """FLUX.2."""

    codec_class = FoldedVaeCodec
    patch = 1  # its latents are folded already
    shift = compute_empirical_mu
    lora_modules = ("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out")

    @torch.no_grad()
    def embed(self, prompt: str) -> Parts:
        """See :class:`PipelineModel`."""
        tokens, _ = self.pipe.encode_prompt(prompt, device=self.pipe.text_encoder.device, max_sequence_length=TOKENS)
        return {"encoder_hidden_states": tokens[0]}

    @staticmethod
    def guided_velocity(network: Network, x: Tensor, sigmas: Tensor, told: Told, guidance: float | None) -> Tensor:
        """Positions are (0, row, column, 0) for pixels and (0, 0, 0, place) for words."""
        words = told["encoder_hidden_states"]
        assert words is not None
        zero = torch.zeros(1, dtype=torch.long, device=x.device)
        rows, columns, places = (torch.arange(n, device=x.device) for n in (*x.shape[2:], words.shape[1]))
        found = network(
            hidden_states=tokens_of(x), timestep=sigmas,
            guidance=None if guidance is None else torch.full_like(sigmas, guidance),
            img_ids=torch.cartesian_prod(zero, rows, columns, zero),
            txt_ids=torch.cartesian_prod(zero, zero, zero, places), **told,
        ).sample  # fmt: skip
        return image_of(found, x)


def blank(resolution: int, path: Path | None) -> Blank:
    """See :class:`Loader`; FLUX.2 dev's size without a path."""
    return blank_of(resolution, path, {})


def blank_of(resolution: int, path: Path | None, usual: dict[str, Any]) -> Blank:
    """See :class:`Loader`.

    Args:
        usual: the network's configuration without a path.
    """
    given = read_note(path / "transformer" / "config.json") if path else {}
    network: Any = Flux2Transformer2DModel.from_config(given or usual)
    side, config = resolution // 16, network.config
    x = torch.zeros(1, config.in_channels, side, side)
    told: Told = {"encoder_hidden_states": torch.zeros(1, TOKENS, config.joint_attention_dim)}
    guidance = 4.0 if config.guidance_embeds else None
    return Blank(network, x, lambda: Flux2.guided_velocity(network, x, torch.zeros(1), told, guidance))


LOADER = Loader.of(Flux2Pipeline, Flux2, blank, "bfloat16")
