"""Noise processes: the forward process from clean inputs to noise, and the prediction target.

Timesteps are integers from 0 (clean) to :attr:`NoiseProcess.steps` − 1 (noise). Samplers of flow matching step at
noise levels between those; a floating-point time is 1000 σ itself.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Stepped:
    """The result of one sampling step.

    Attributes:
        x: the input of the next step.
        x0: the clean input predicted at this step.
    """

    x: Float[Tensor, "n c s s"]
    x0: Float[Tensor, "n c s s"]


class Sampler(ABC):
    """A deterministic sampler from noise to a clean input.

    Attributes:
        times: timesteps of its steps, in descending order.
    """

    times: list[Any]

    @abstractmethod
    def step(self, prediction: Tensor, time: Any, x: Tensor) -> Stepped:
        """One denoising step from ``time``."""


class NoiseProcess(ABC):
    """A forward process with a prediction target.

    Attributes:
        steps: number of timesteps.
        schedule: parameters that determine the process, for fingerprints.
    """

    steps: int
    schedule: Tensor

    @abstractmethod
    def to(self, device: torch.device | str) -> None:
        """Move its tables to a device."""

    @abstractmethod
    def noisy(self, x: Tensor, noise: Tensor, times: Shaped[Tensor, " n"]) -> Tensor:
        """The noisy input x_t."""

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor, times: Shaped[Tensor, " n"]) -> Tensor:
        """The training target of the network at x_t."""

    @abstractmethod
    def view(self, view: str, times: Shaped[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Numbers a and b with which a·x_t + b·prediction is the noise ε̂ ("noise") or the image x̂₀ ("image")."""

    @abstractmethod
    def level(self, times: Tensor) -> Float[Tensor, " n"]:
        """The weight of the noise in x_t."""

    @abstractmethod
    def clock(self, times: Tensor) -> Tensor:
        """What a UNet takes as its time, on the scale from 0 to 1000."""

    @abstractmethod
    def loss_weights(self, times: Shaped[Tensor, " n"], gamma: float | None) -> Float[Tensor, " n"]:
        """Weights of training losses: min-SNR-γ (Hang et al., 2023, arXiv 2303.09556), or ones if γ is None."""

    @abstractmethod
    def elbo_weights(self, times: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Weights with which the loss is the evidence lower bound (ELBO)."""

    @abstractmethod
    def sampler(self, steps: int, clips: bool) -> Sampler:
        """A sampler with ``steps`` steps.

        Args:
            clips: whether predictions of x₀ are clipped to [−1, 1].
        """

    @abstractmethod
    def save(self, folder: Any) -> None:
        """Write it in diffusers' format to ``folder/scheduler``."""
