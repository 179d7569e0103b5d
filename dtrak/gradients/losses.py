"""The training loss of one sample at chosen timesteps, with noise keyed by the sample's id."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dtrak.models.base import DiffusionModel
from dtrak.utils.noise import feature_noise


def pair_losses(
    model: DiffusionModel,
    x: Float[Tensor, "1 *shape"],
    sample_id: str,
    label: str | None,
    pairs: Sequence[tuple[int, int]],
    seed: int = 0,
) -> Float[Tensor, " pairs"]:
    """mean((ε_θ − ε)²) of one sample at each (timestep, draw), differentiable in the model's weights.

    For models with another parametrisation ε stands for their target: the velocity, say.

    Args:
        x: the encoded sample.
        label: its label or caption.
        seed: of the noise, with the sample's id.
    """
    noise = torch.from_numpy(feature_noise(seed, sample_id, pairs, tuple(x.shape[1:]))).to(x.device)
    times = torch.tensor([t for t, _ in pairs], device=x.device)
    condition = model.condition([label])
    told = None if condition is None else condition.expand(len(pairs), *condition.shape[1:])
    prediction = model.predict(model.add_noise(x, noise, times), times, told)
    return (prediction - model.process.target(x, noise, times)).square().flatten(1).mean(1)
