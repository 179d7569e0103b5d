"""Flow matching: straight paths from images to noise, for networks that predict velocities, sampled by Euler steps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Shaped
from torch import Tensor

from dtrak.config import TIMES
from dtrak.models.process import NoiseProcess, Sampler, Stepped
from dtrak.utils.errors import DtrakError


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


class _Euler(Sampler):
    def __init__(self, scheduler: Any, steps: int, even: bool, mu: float | None):
        given = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if even else {"num_inference_steps": steps}
        scheduler.set_timesteps(**given, mu=mu)
        self._scheduler = scheduler
        self.times = scheduler.timesteps.tolist()

    def step(self, prediction: Tensor, time: float, x: Tensor) -> Stepped:
        x0 = x - time / TIMES * prediction
        return Stepped(self._scheduler.step(prediction, torch.tensor(time), x).prev_sample, x0)
