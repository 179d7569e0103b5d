"""Gradients of output functions for one sample: ``mean over (t, draw) of ∇_θ f(ε_θ(x_t, t, c))``.

A feature is a *sum* over timesteps of one sample's gradients, so no per-sample gradient machinery
is needed: the batch of one forward pass is one sample at several timesteps, and an ordinary
backward pass adds them up. Nothing in the network mixes the rows of a batch, hence the sum is
exact, any module works (fused attention, LoRA), and the cost is that of plain training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dtrak.models import DiffusionModel
from dtrak.noise import feature_noise
from dtrak.outputs import OUTPUT_FUNCTIONS


@dataclass(frozen=True)
class NoiseSchedule:
    """Where a sample is looked at: every (timestep, draw) pair counts alike.

    Attributes:
        timesteps: in [0, 1000).
        draws: independent noises for each timestep.
        seed: of the noise; see :mod:`dtrak.noise`.
    """

    timesteps: tuple[int, ...]
    draws: int = 1
    seed: int = 0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All (timestep, draw) pairs, draws outermost."""
        return [(t, draw) for draw in range(self.draws) for t in self.timesteps]


def elbo_weights(model: DiffusionModel, timesteps: Tensor) -> Float[Tensor, " n"]:
    """w_t = β_t / (2 α_t (1 − ᾱ_t)), the weight of ``weighted-mse``."""
    betas = model.scheduler.betas.to(model.device)[timesteps]
    return betas / (2 * (1 - betas) * (1 - model.alphas_cumprod[timesteps]))


def sample_gradients(
    model: DiffusionModel,
    x: Float[Tensor, "c h w"],
    sample_id: str,
    class_index: int | None,
    schedule: NoiseSchedule,
    outputs: Sequence[str],
    batch_size: int = 16,
) -> list[Float[Tensor, " d"]]:
    """The mean gradient of each output function over all (timestep, draw) pairs.

    Args:
        x: the encoded image.
        sample_id: keys the noise.
        class_index: what to condition on; None for a model without classes.
        outputs: names in ``OUTPUT_FUNCTIONS``; they share each forward pass.
        batch_size: pairs per forward pass; it bounds memory and changes nothing else.

    Returns:
        One flat vector per output, over ``model.parameters()`` in order.
    """
    parameters = list(model.parameters().values())
    totals = [torch.zeros(sum(p.numel() for p in parameters), device=model.device) for _ in outputs]
    pairs = schedule.pairs
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        noise = torch.from_numpy(feature_noise(schedule.seed, sample_id, chunk, tuple(x.shape))).to(model.device)
        timesteps = torch.tensor([t for t, _ in chunk], device=model.device)
        classes = None if class_index is None else torch.full((len(chunk),), class_index, device=model.device)
        x_t = model.add_noise(x.to(model.device), noise, timesteps)
        prediction = model.predict(x_t, timesteps, classes)
        weights = elbo_weights(model, timesteps)
        for i, name in enumerate(outputs):
            cotangent = OUTPUT_FUNCTIONS[name](prediction.detach(), noise, weights) / len(pairs)
            gradients = torch.autograd.grad(
                prediction, parameters, cotangent, retain_graph=i + 1 < len(outputs), materialize_grads=True
            )
            _accumulate(totals[i], gradients)
    return totals


def _accumulate(total: Tensor, gradients: Sequence[Tensor]) -> None:
    start = 0
    for gradient in gradients:
        total[start : start + gradient.numel()] += gradient.reshape(-1)
        start += gradient.numel()
