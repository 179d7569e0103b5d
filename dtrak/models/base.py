"""The interface of a diffusion model: a prediction as a function of the tuned parameters.

A model consists of four parts: a codec (8-bit images to network inputs), a conditioner (labels or prompts to
conditioning), the network, and a noise process (forward process, target, loss weights, sampler). Each model kind is
one file in this package; code outside it does not depend on the noise process or the prediction target.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from dtrak.models.codec import Codec
from dtrak.models.conditioner import Conditioner, Told
from dtrak.models.process import NoiseProcess
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator

Network = Callable[..., Any]  # a network, or a function that runs it with other parameters
PREPROCESSING_VERSION = 1  # part of every fingerprint: raise it whenever ``encode`` changes


class DiffusionModel(ABC):
    """A network with its codec, conditioner and noise process.

    Attributes:
        network: gradients are taken with respect to its parameters with ``requires_grad``.
        resolution: width and height of its images, in pixels.
        dtype: type of the network's frozen weights.
        lora_modules: names of layers that a LoRA adapts where its recipe names none.
    """

    lora_modules: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

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
        """Write the network (or only the adapter) and the files needed to load it to ``folder``."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the network's input for one image."""
        return self.codec.shape

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps of the noise process."""
        return self.process.steps

    @property
    def takes_text(self) -> bool:
        """Whether it is conditioned on free text."""
        return self.conditioner.takes_text

    @property
    def names(self) -> list[str]:
        """Labels or suggested prompts to condition on; empty for an unconditional model."""
        return list(self.conditioner.names)

    def to(self, device: torch.device | str) -> "DiffusionModel":
        """Move all parts; returns self."""
        self.network.to(device)
        for part in (self.codec, self.conditioner, self.process):
            part.to(device)
        return self

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The tuned parameters by name, in the order of the projection's input coordinates."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def encode(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n c s s"]:
        """Images to network inputs."""
        return self.codec.encode(pixels)

    def decode(self, x: Float[Tensor, "n c s s"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Network inputs to 8-bit images."""
        return self.codec.decode(x)

    def condition(self, names: Sequence[str | None]) -> Told | None:
        """The conditioning for each label or prompt; None for an unconditional model.

        Raises:
            DtrakError: the model has no class for a label.
        """
        return self.conditioner.condition(names)

    def add_noise(self, x: Tensor, noise: Tensor, timesteps: Shaped[Tensor, " n"]) -> Tensor:
        """The noisy input x_t."""
        return self.process.noisy(x, noise, timesteps)

    def predict(
        self, x_t: Float[Tensor, "n c s s"], timesteps: Shaped[Tensor, " n"], condition: Tensor | None
    ) -> Float[Tensor, "n c s s"]:
        """The network's prediction, in float32 for weights of any lower precision."""
        return self.predict_by(self.network, x_t, timesteps, condition)

    def predict_by(
        self, network: Network, x_t: Float[Tensor, "n c s s"], timesteps: Shaped[Tensor, " n"], condition: Tensor | None
    ) -> Float[Tensor, "n c s s"]:
        """:meth:`predict` with ``network`` in the place of the model's own."""
        x_t = x_t if self.dtype == torch.float32 else x_t.to(self.dtype)
        told = {} if condition is None else self.conditioner.told(condition)
        prediction = self.call(network, x_t, timesteps, told)
        return prediction if prediction.dtype == torch.float64 else prediction.float()

    def guided(self, toward: Tensor, away: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans, 2022): ``away + scale · (toward − away)``."""
        return away + scale * (toward - away)

    def call(self, network: Network, x: Tensor, times: Tensor, told: dict[str, Tensor | None]) -> Tensor:
        """The output of ``network``, in its own type.

        Args:
            times: as the noise process takes them.
            told: from :meth:`Conditioner.told`.
        """
        return network(x, self.process.clock(times), **told).sample


def checkpoint_gradients(network: Any) -> None:
    """Let the backward pass compute activations again, block by block, instead of keeping them.

    Raises:
        DtrakError: the network cannot.
    """
    try:
        network.enable_gradient_checkpointing()
    except (AttributeError, ValueError) as error:
        raise DtrakError(
            f"This network has no gradient checkpointing: {error}", hint="Remove model.gradient_checkpointing."
        ) from error


@contextlib.contextmanager
def activations_kept(network: Any) -> Iterator[None]:
    """Without :func:`checkpoint_gradients` within the block, for what cannot run twice."""
    if not checkpoints_gradients(network):
        yield
        return
    network.disable_gradient_checkpointing()
    try:
        yield
    finally:
        network.enable_gradient_checkpointing()


def checkpoints_gradients(network: torch.nn.Module) -> bool:
    """Whether :func:`checkpoint_gradients` is in effect."""
    return any(getattr(module, "gradient_checkpointing", False) for module in network.modules())


def underflow_scale(model: DiffusionModel, size: int) -> float:
    """The factor on cotangents of means over ``size`` elements that prevents underflow in float16; 1 otherwise.

    At most 2¹⁵: cotangents of sums (the ℓ1 norm's ±1) must not overflow.
    """
    return float(min(size, 2**15)) if model.dtype == torch.float16 else 1.0


@torch.no_grad()
def shuffle_weights(model: DiffusionModel) -> Any:
    """Shuffle the entries of every weight tensor in place, as a negative control (Adebayo et al., NeurIPS 2018)."""
    for name, parameter in model.network.named_parameters():
        order = keyed_generator("shuffle", 0, name).permutation(parameter.numel())
        parameter.copy_(parameter.flatten()[torch.from_numpy(order)].reshape(parameter.shape))
    return model
