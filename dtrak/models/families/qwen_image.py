"""Qwen-Image: flow matching on packed latents of a video VAE, conditioned on a vision-language model's last layer.

The network takes σ; words beyond a prompt's end are masked. Predictions are velocities v = ε − x₀.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.codec import FrameVaeCodec
from dtrak.models.families.base import Blank, Loader
from dtrak.models.families.flow import FlowModel, Told, image_of, padded, tokens_of
from dtrak.models.families.prompts import Parts
from dtrak.utils.files import read_note

TOKENS = 512


class QwenImage(FlowModel):
    """Qwen-Image."""

    codec_class = FrameVaeCodec
    lora_modules = ("to_q", "to_k", "to_v", "to_out.0")

    @torch.no_grad()
    def embed(self, prompt: str) -> Parts:
        """See :class:`PipelineModel`."""
        words, _ = self.pipe.encode_prompt(prompt, device=self.pipe.text_encoder.device, max_sequence_length=TOKENS)
        states, mask = padded(words[0], TOKENS)
        return {"encoder_hidden_states": states, "encoder_hidden_states_mask": mask}

    def velocity(self, network: Network, x: Tensor, sigmas: Tensor, told: Told) -> Tensor:
        """See :class:`FlowModel`."""
        return predict(network, x, sigmas, told)

    def guided(self, toward: Tensor, away: Tensor, scale: float) -> Tensor:
        """Guidance, scaled back patch by patch to the norm that the prediction has without it."""
        plain = F.pixel_unshuffle(super().guided(toward, away, scale), 2)
        wanted = F.pixel_unshuffle(toward, 2).norm(dim=1, keepdim=True)
        return F.pixel_shuffle(plain * (wanted / plain.norm(dim=1, keepdim=True)), 2)


def predict(network: Network, x: Tensor, sigmas: Tensor, told: Told) -> Tensor:
    """The velocity at x: pack 2×2 patches, run the transformer, unpack."""
    folded = F.pixel_unshuffle(x, 2)
    shapes = [[(1, *folded.shape[2:])]] * len(x)
    found = network(hidden_states=tokens_of(folded), timestep=sigmas, img_shapes=shapes, **told).sample
    return F.pixel_shuffle(image_of(found, folded), 2)


def blank(resolution: int, path: Path | None) -> Blank:
    """See :class:`Loader`."""
    given = read_note(path / "transformer" / "config.json") if path else {}
    network: Any = QwenImageTransformer2DModel.from_config(given)
    side, config = resolution // 8, network.config
    x = torch.zeros(1, config.in_channels // 4, side, side)
    told: Told = {
        "encoder_hidden_states": torch.zeros(1, TOKENS, config.joint_attention_dim),
        "encoder_hidden_states_mask": None,
    }
    return Blank(network, x, lambda: predict(network, x, torch.zeros(1), told))


LOADER = Loader.of(QwenImagePipeline, QwenImage, blank, "bfloat16")
