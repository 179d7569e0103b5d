"""Noise processes: the forward process from clean inputs to noise, and the prediction target.

Timesteps are integers from 0 (clean) to :attr:`NoiseProcess.steps` − 1 (noise). To support another forward process
or target, such as v-prediction, add a class here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from dtrak.config import TIMES
from dtrak.utils.errors import DtrakError


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

    times: list[int]

    @abstractmethod
    def step(self, prediction: Tensor, time: int, x: Tensor) -> Stepped:
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
    def noisy(self, x: Tensor, noise: Tensor, times: Int[Tensor, " n"]) -> Tensor:
        """The noisy input x_t."""

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor, times: Int[Tensor, " n"]) -> Tensor:
        """The training target of the network at x_t."""

    @abstractmethod
    def loss_weights(self, times: Int[Tensor, " n"], gamma: float | None) -> Float[Tensor, " n"]:
        """Weights of training losses: min-SNR-γ (Hang et al., 2023, arXiv 2303.09556), or ones if γ is None."""

    @abstractmethod
    def elbo_weights(self, times: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
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


class EpsilonDiffusion(NoiseProcess):
    """x_t = √ᾱ_t x + √(1−ᾱ_t) ε, and the network predicts ε (Ho et al., NeurIPS 2020).

    Args:
        scheduler: a diffusers ``DDPMScheduler``.

    Raises:
        DtrakError: the scheduler does not use ε-prediction.
    """

    def __init__(self, scheduler: Any):
        if scheduler.config.prediction_type != "epsilon":
            raise DtrakError(
                f"The model uses '{scheduler.config.prediction_type}'; only ε-prediction is supported.",
                hint="Use a model whose scheduler has prediction_type 'epsilon'.",
            )
        if scheduler.config.num_train_timesteps != TIMES:
            raise DtrakError(
                f"The model has {scheduler.config.num_train_timesteps} timesteps; {TIMES} are supported.",
                hint=f"Use a model whose scheduler has num_train_timesteps {TIMES}.",
            )
        self._scheduler = scheduler
        self.schedule = self.alphas_cumprod = scheduler.alphas_cumprod.float()
        self.steps = scheduler.config.num_train_timesteps

    def to(self, device: torch.device | str) -> None:
        """See :class:`NoiseProcess`."""
        self.alphas_cumprod = self.alphas_cumprod.to(device)

    def noisy(self, x: Tensor, noise: Tensor, times: Int[Tensor, " n"]) -> Tensor:
        """See :class:`NoiseProcess`."""
        alpha = self.alphas_cumprod[times].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * x + (1 - alpha).sqrt() * noise

    def target(self, x: Tensor, noise: Tensor, times: Int[Tensor, " n"]) -> Tensor:
        """ε."""
        return noise

    def loss_weights(self, times: Int[Tensor, " n"], gamma: float | None) -> Float[Tensor, " n"]:
        """min(SNR, γ)/SNR."""
        if gamma is None:
            return torch.ones(len(times), device=times.device)
        alpha = self.alphas_cumprod[times]
        return (gamma * (1 - alpha) / alpha).clamp(max=1)

    def elbo_weights(self, times: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """w_t = β_t / (2 α_t (1 − ᾱ_t))."""
        betas = self._scheduler.betas.to(times.device)[times]
        return betas / (2 * (1 - betas) * (1 - self.alphas_cumprod[times]))

    def sampler(self, steps: int, clips: bool) -> Sampler:
        """DDIM with η = 0 (Song et al., 2021)."""
        return _Ddim(DDIMScheduler.from_config(self._scheduler.config, clip_sample=clips), steps)

    def save(self, folder: Any) -> None:
        """See :class:`NoiseProcess`."""
        self._scheduler.save_pretrained(folder / "scheduler")


class _Ddim(Sampler):
    def __init__(self, scheduler: Any, steps: int):
        scheduler.set_timesteps(steps)
        self._scheduler, self.times = scheduler, scheduler.timesteps.tolist()

    def step(self, prediction: Tensor, time: int, x: Tensor) -> Stepped:
        result = self._scheduler.step(prediction, time, x)
        return Stepped(result.prev_sample, result.pred_original_sample)
