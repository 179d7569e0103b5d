"""Noise processes: the forward process from clean inputs to noise, and the prediction target.

Timesteps are integers from 0 (clean) to :attr:`NoiseProcess.steps` − 1 (noise). Samplers of flow matching step at
noise levels between those; a floating-point time is 1000 σ itself.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Shaped
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


class FlowMatching(NoiseProcess):
    """x_σ = (1−σ) x + σ ε, and the network predicts the velocity ε − x (Lipman et al., ICLR 2023).

    Timestep t has the noise level σ that diffusers' training scripts use for the index 999 − t: with the scheduler's
    static shift, and without its dynamic one.

    Args:
        scheduler: a diffusers ``FlowMatchEulerDiscreteScheduler``.
        tokens: image tokens, which set the dynamic shift of the sampler.
        even: whether the pipeline asks its sampler for evenly spaced noise levels from 1 to 1/steps.
        shift: the sampler's dynamic shift μ by (tokens, steps); the scheduler's own rule, linear in tokens, for None.

    Raises:
        DtrakError: the scheduler is another one.
    """

    def __init__(
        self, scheduler: Any, tokens: int, even: bool = False, shift: Callable[[int, int], float] | None = None
    ):
        known = type(scheduler) is FlowMatchEulerDiscreteScheduler
        if not known or scheduler.config.num_train_timesteps != TIMES:
            raise DtrakError(
                f"The model's scheduler is {type(scheduler).__name__}, which is not supported.",
                hint=f"Use a model with FlowMatchEulerDiscreteScheduler and num_train_timesteps {TIMES}.",
            )
        self._scheduler, self._tokens, self._even, self._shift = scheduler, tokens, even, shift
        fresh: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        self.schedule = self.sigmas = fresh.sigmas.flip(0).float()
        self.steps = len(self.sigmas)

    def to(self, device: torch.device | str) -> None:
        """See :class:`NoiseProcess`."""
        self.sigmas = self.sigmas.to(device)

    def level(self, times: Tensor) -> Float[Tensor, " n"]:
        """σ."""
        return times / TIMES if times.is_floating_point() else self.sigmas[times]

    def clock(self, times: Tensor) -> Tensor:
        """1000 σ."""
        return TIMES * self.level(times)

    def noisy(self, x: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """See :class:`NoiseProcess`."""
        sigma = self.level(times).reshape(-1, 1, 1, 1)
        return (1 - sigma) * x + sigma * noise

    def target(self, x: Tensor, noise: Tensor, times: Shaped[Tensor, " n"]) -> Tensor:
        """ε − x."""
        return noise - x

    def view(self, view: str, times: Shaped[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """See :class:`NoiseProcess`; ε̂ = x_σ + (1−σ) v̂ and x̂₀ = x_σ − σ v̂."""
        sigma = self.level(times)
        return torch.ones_like(sigma), 1 - sigma if view == "noise" else -sigma

    def loss_weights(self, times: Shaped[Tensor, " n"], gamma: float | None) -> Float[Tensor, " n"]:
        """Ones: the weighting "none" of diffusers' scripts."""
        return torch.ones(len(times), device=times.device)

    def elbo_weights(self, times: Shaped[Tensor, " n"]) -> Float[Tensor, " n"]:
        """(1−σ)/σ · Δσ: half the fall of the log-SNR, times (1−σ)², as an error of v̂ is (1−σ) as much in ε̂."""
        if times.is_floating_point():  # of a sampler: the timestep at or above its noise level
            times = torch.searchsorted(self.sigmas, self.level(times) * (1 - 1e-6)).clamp(max=self.steps - 1)
        sigma = self.sigmas[times]
        before = torch.where(times > 0, self.sigmas[(times - 1).clamp(min=0)], torch.zeros_like(sigma))
        return (1 - sigma) / sigma * (sigma - before)

    def sampler(self, steps: int, clips: bool) -> Sampler:
        """Euler steps, as the pipeline takes them."""
        fresh = FlowMatchEulerDiscreteScheduler.from_config(self._scheduler.config)
        return _Euler(fresh, steps, self._even, self._mu(steps))

    def _mu(self, steps: int) -> float | None:
        config = self._scheduler.config
        if not config.use_dynamic_shifting:
            return None
        if self._shift:
            return self._shift(self._tokens, steps)
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return config.base_shift + slope * (self._tokens - config.base_image_seq_len)

    def save(self, folder: Any) -> None:
        """See :class:`NoiseProcess`."""
        self._scheduler.save_pretrained(folder / "scheduler")


def process_of(scheduler: Any, tokens: int) -> NoiseProcess:
    """The process that a UNet's scheduler belongs to: flow matching, or diffusion by its prediction type.

    Args:
        scheduler: any of diffusers' schedulers that a pipeline comes with.
        tokens: see :class:`FlowMatching`.

    Raises:
        DtrakError: it is not supported.
    """
    if type(scheduler) is FlowMatchEulerDiscreteScheduler:
        return FlowMatching(scheduler, tokens)
    check_betas(type(scheduler).__name__, scheduler.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sampler has keys that DDPMScheduler ignores
        return variance_preserving(DDPMScheduler.from_config(scheduler.config))


def check_betas(name: str, config: Any) -> None:
    """Check that a scheduler's configuration has a schedule of β.

    Raises:
        DtrakError: it has none, as EDM's and other variants of flow matching.
    """
    if "beta_schedule" not in config:
        raise DtrakError(
            f"The pipeline's {name} has no β, and is not {FlowMatchEulerDiscreteScheduler.__name__}.",
            hint="Use a base whose scheduler is one of these two kinds.",
        )


class _Euler(Sampler):
    def __init__(self, scheduler: Any, steps: int, even: bool, mu: float | None):
        given = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if even else {"num_inference_steps": steps}
        scheduler.set_timesteps(**given, mu=mu)
        self._scheduler = scheduler
        self.times = scheduler.timesteps.tolist()

    def step(self, prediction: Tensor, time: float, x: Tensor) -> Stepped:
        x0 = x - time / TIMES * prediction
        return Stepped(self._scheduler.step(prediction, torch.tensor(time), x).prev_sample, x0)


class _Ddim(Sampler):
    def __init__(self, scheduler: Any, steps: int):
        scheduler.set_timesteps(steps)
        self._scheduler, self.times = scheduler, scheduler.timesteps.tolist()

    def step(self, prediction: Tensor, time: int, x: Tensor) -> Stepped:
        result = self._scheduler.step(prediction, time, x)
        return Stepped(result.prev_sample, result.pred_original_sample)
