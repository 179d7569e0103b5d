"""A diffusion model as attribution sees it: a prediction as a function of the tuned parameters.

It is put together of four parts: a codec (8-bit images to inputs), a conditioner (names to what the network is told),
the network, and a noise process (path, target, weights, sampler). A family of models is one file beside this one that
puts them together; nothing outside this package knows how a path runs or what a network predicts.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dtrak.models.codec import Codec
from dtrak.models.conditioner import Conditioner, Told
from dtrak.models.process import NoiseProcess
from dtrak.utils.noise import keyed_generator

PREPROCESSING_VERSION = 1  # part of every fingerprint: raise it whenever ``encode`` changes


class DiffusionModel(ABC):
    """A network with its codec, conditioner and noise process.

    Attributes:
        network: its parameters with ``requires_grad`` are those attributed over.
        resolution: width and height of the images it draws, in pixels.
        dtype: of the network's frozen weights.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        codec: Codec,
        conditioner: Conditioner,
        process: NoiseProcess,
        resolution: int,
    ):
        self.network, self.codec, self.conditioner, self.process = network, codec, conditioner, process
        self.resolution = resolution
        self.dtype = next(network.parameters()).dtype

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of everything the prediction depends on: weights, architecture, conditioning, schedule."""

    @abstractmethod
    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the network (or the adapter alone), and what is needed to load it again, to ``folder``."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the network's input for one image."""
        return self.codec.shape

    @property
    def num_timesteps(self) -> int:
        """How many times the noise process names."""
        return self.process.steps

    @property
    def takes_text(self) -> bool:
        """Whether any text is a name it can be told."""
        return self.conditioner.takes_text

    @property
    def names(self) -> list[str]:
        """Names to choose from; empty for a model that is told nothing, or anything."""
        return list(self.conditioner.names)

    def to(self, device: torch.device | str) -> "DiffusionModel":
        """Move all parts; returns self."""
        self.network.to(device)
        for part in (self.codec, self.conditioner, self.process):
            part.to(device)
        return self

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The tuned parameters by name, in the order of the projection's input."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def encode(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n c s s"]:
        """Images to network inputs."""
        return self.codec.encode(pixels)

    def decode(self, x: Float[Tensor, "n c s s"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Network inputs to 8-bit images."""
        return self.codec.decode(x)

    def condition(self, names: Sequence[str | None]) -> Told | None:
        """What the network is told for each name; None for a model that is told nothing."""
        return self.conditioner.condition(names)

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Int[Tensor, " n"]) -> Tensor:
        """x_t on the process's path."""
        return self.process.noisy(x, noise, timesteps)

    def predict(
        self, x_t: Float[Tensor, "n c s s"], timesteps: Int[Tensor, " n"], condition: Tensor | None
    ) -> Float[Tensor, "n c s s"]:
        """The network's prediction, in float32 whatever the weights' type."""
        x_t = x_t if self.dtype == torch.float32 else x_t.to(self.dtype)
        prediction = self.network(x_t, timesteps, **self.conditioner.told(condition)).sample
        return prediction if prediction.dtype == torch.float64 else prediction.float()


def underflow_scale(model: DiffusionModel, size: int) -> float:
    """What cotangents of means over ``size`` numbers are multiplied by, so that float16 can hold them."""
    return float(size) if model.dtype == torch.float16 else 1.0


@torch.no_grad()
def shuffle_weights(model: DiffusionModel) -> Any:
    """Shuffle the entries of every weight in place: the same scales, nothing learnt (Adebayo et al., 2018)."""
    for name, parameter in model.network.named_parameters():
        order = keyed_generator("shuffle", 0, name).permutation(parameter.numel())
        parameter.copy_(parameter.flatten()[torch.from_numpy(order)].reshape(parameter.shape))
    return model
