"""Diffusion: variance-preserving noise processes, for networks that predict ε or v, sampled by DDIM."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Shaped
from torch import Tensor

from dtrak.config import TIMES
from dtrak.models.process import NoiseProcess, Sampler, Stepped
from dtrak.utils.errors import DtrakError


class VariancePreserving(NoiseProcess):
    """x_t = √ᾱ_t x + √(1−ᾱ_t) ε (Ho et al., NeurIPS 2020).

    Args:
        scheduler: a diffusers ``DDPMScheduler``.

    Raises:
        DtrakError: the scheduler has another prediction type or number of timesteps.
    """

    prediction = ""

    def __init__(self, scheduler: Any):
        if scheduler.config.prediction_type != self.prediction:
            raise DtrakError(
                f"The model predicts '{scheduler.config.prediction_type}'; '{self.prediction}' is supported here.",
                hint="Use a model whose scheduler has another prediction_type.",
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

    def noisy(self, x: Tensor, noise: Tensor, times: Shaped[Tensor, " n"]) -> Tensor:
        """See :class:`NoiseProcess`."""
        alpha = self.alphas_cumprod[times].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * x + (1 - alpha).sqrt() * noise

    def level(self, times: Tensor) -> Float[Tensor, " n"]:
        """See :class:`NoiseProcess`."""
        return (1 - self.alphas_cumprod[times]).sqrt()

    def clock(self, times: Tensor) -> Tensor:
        """The timestep."""
        return times

    def elbo_weights(self, times: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Of the ε-loss: w_t = β_t / (2 α_t (1 − ᾱ_t))."""
        betas = self._scheduler.betas.to(times.device)[times]
        return betas / (2 * (1 - betas) * (1 - self.alphas_cumprod[times]))

    def sampler(self, steps: int, clips: bool) -> Sampler:
        """DDIM with η = 0 (Song et al., 2021)."""
        return _Ddim(DDIMScheduler.from_config(self._scheduler.config, clip_sample=clips), steps)

    def save(self, folder: Any) -> None:
        """See :class:`NoiseProcess`."""
        self._scheduler.save_pretrained(folder / "scheduler")


class EpsilonDiffusion(VariancePreserving):
    """The network predicts ε."""

    prediction = "epsilon"

    def target(self, x: Tensor, noise: Tensor, times: Shaped[Tensor, " n"]) -> Tensor:
        """ε."""
        return noise

    def view(self, view: str, times: Shaped[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """See :class:`NoiseProcess`; x̂₀ = (x_t − √(1−ᾱ) ε̂) / √ᾱ."""
        alpha = self.alphas_cumprod[times]
        if view == "noise":
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        return alpha.rsqrt(), -((1 - alpha) / alpha).sqrt()

    def loss_weights(self, times: Shaped[Tensor, " n"], gamma: float | None) -> Float[Tensor, " n"]:
        """min(SNR, γ)/SNR."""
        if gamma is None:
            return torch.ones(len(times), device=times.device)
        alpha = self.alphas_cumprod[times]
        return (gamma * (1 - alpha) / alpha).clamp(max=1)


class VelocityDiffusion(VariancePreserving):
    """The network predicts v = √ᾱ ε − √(1−ᾱ) x (Salimans & Ho, ICLR 2022)."""

    prediction = "v_prediction"

    def target(self, x: Tensor, noise: Tensor, times: Shaped[Tensor, " n"]) -> Tensor:
        """v."""
        alpha = self.alphas_cumprod[times].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * x

    def view(self, view: str, times: Shaped[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """See :class:`NoiseProcess`; ε̂ = √(1−ᾱ) x_t + √ᾱ v̂ and x̂₀ = √ᾱ x_t − √(1−ᾱ) v̂."""
        alpha = self.alphas_cumprod[times]
        return ((1 - alpha).sqrt(), alpha.sqrt()) if view == "noise" else (alpha.sqrt(), -(1 - alpha).sqrt())

    def loss_weights(self, times: Shaped[Tensor, " n"], gamma: float | None) -> Float[Tensor, " n"]:
        """min(SNR, γ)/(SNR + 1)."""
        if gamma is None:
            return torch.ones(len(times), device=times.device)
        alpha = self.alphas_cumprod[times]
        return (alpha / (1 - alpha)).clamp(max=gamma) * (1 - alpha)

    def elbo_weights(self, times: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Those of the ε-loss times ᾱ, as an error of v̂ is one of √ᾱ as much in ε̂."""
        return super().elbo_weights(times) * self.alphas_cumprod[times]


def variance_preserving(scheduler: Any) -> VariancePreserving:
    """The process of a ``DDPMScheduler``, by its prediction type.

    Raises:
        DtrakError: it is not supported.
    """
    kind = VelocityDiffusion if scheduler.config.prediction_type == VelocityDiffusion.prediction else EpsilonDiffusion
    return kind(scheduler)


class _Ddim(Sampler):
    def __init__(self, scheduler: Any, steps: int):
        scheduler.set_timesteps(steps)
        self._scheduler, self.times = scheduler, scheduler.timesteps.tolist()

    def step(self, prediction: Tensor, time: int, x: Tensor) -> Stepped:
        result = self._scheduler.step(prediction, time, x)
        return Stepped(result.prev_sample, result.pred_original_sample)
