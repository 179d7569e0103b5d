"""Z-Image: flow matching in a single stream of pixels and words, conditioned on Qwen3's last layer but one.

The network takes 1 − σ and predicts the negative velocity x₀ − ε; prompts keep their own lengths.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from dtrak.models.base import Network
from dtrak.models.families.base import Blank, Loader
from dtrak.models.families.flow import FlowModel, Told, padded
from dtrak.models.families.prompts import Parts
from dtrak.utils.files import read_note

TOKENS = 512


class ZImage(FlowModel):
    """Z-Image. A guidance scale g here is the pipeline's ``guidance_scale`` g − 1."""

    lora_modules = ("to_q", "to_k", "to_v", "to_out.0")

    @torch.no_grad()
    def embed(self, prompt: str) -> Parts:
        """See :class:`PipelineModel`."""
        device = self.pipe.text_encoder.device
        (words,), _ = self.pipe.encode_prompt(
            prompt, device=device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        states, mask = padded(words, TOKENS)
        return {"words": states, "mask": mask}

    def velocity(self, network: Network, x: Tensor, sigmas: Tensor, told: Told) -> Tensor:
        """See :class:`FlowModel`."""
        words, mask = told["words"], told["mask"]
        assert words is not None
        assert mask is not None
        lengths = mask.float().sum(1).int().tolist()
        prompts = [row[:length] for row, length in zip(words, lengths, strict=True)]
        return predict(network, x, sigmas, prompts)


def predict(network: Network, x: Tensor, sigmas: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """The velocity at x; ``prompts`` are embeddings, one of shape (words, d) for each row."""
    rows = list(x[:, :, None].unbind())
    return -torch.stack(list(network(rows, 1 - sigmas, list(prompts)).sample))[:, :, 0]


def blank(resolution: int, path: Path | None) -> Blank:
    """See :class:`Loader`."""
    given = read_note(path / "transformer" / "config.json") if path else {}
    network: Any = ZImageTransformer2DModel.from_config(given)
    side, config = resolution // 8, network.config
    x = torch.zeros(1, config.in_channels, side, side)
    prompts = [torch.zeros(TOKENS, config.cap_feat_dim)]
    return Blank(network, x, lambda: predict(network, x, torch.zeros(1), prompts))


LOADER = Loader.of(ZImagePipeline, ZImage, blank, "bfloat16")
