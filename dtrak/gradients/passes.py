"""Gradients of output functions for one sample: ∇_θ f(ε_θ(x_t, t, c)) at several (t, draw) pairs.

A feature is a *sum* over one sample's pairs, so no per-sample gradient machinery is needed for it:
the batch of one forward pass is one sample at several pairs, and an ordinary backward pass adds
them up. Nothing in the network mixes the rows of a batch, hence the sum is exact, any module works
(fused attention, LoRA), and the cost is that of plain training. Where each pair is wanted apart,
:mod:`dtrak.gradients.rows` gives them for networks of common layers, at little more for a LoRA; for
others, ``vmap`` over the pairs of one vector–Jacobian product per output does, more slowly.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtrak.gradients.outputs import OUTPUT_FUNCTIONS
from dtrak.gradients.rows import Recorder
from dtrak.models.base import DiffusionModel, underflow_scale
from dtrak.utils.noise import feature_noise


@dataclass(frozen=True)
class NoiseSchedule:
    """Where a sample is looked at: every (timestep, draw) pair counts alike.

    Attributes:
        timesteps: in [0, 1000).
        draws: independent noises for each timestep.
        seed: of the noise; see :mod:`dtrak.utils.noise`.
        first_draw: number of the first of them.
    """

    timesteps: tuple[int, ...]
    draws: int = 1
    seed: int = 0
    first_draw: int = 0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All (timestep, draw) pairs, draws outermost."""
        draws = range(self.first_draw, self.first_draw + self.draws)
        return [(t, draw) for draw in draws for t in self.timesteps]


@dataclass(frozen=True)
class Chunk:
    """What one forward pass gave.

    Attributes:
        pairs: numbers of the pairs, consecutive.
        gradients: for each tuned parameter in the network's order, that of each output; a row a pair, or one row,
            their sum. To be read once: they may be made as they are read.
        values: mean((ε_θ − ε)²) and mean(ε_θ²) of each pair, float64.
    """

    pairs: range
    gradients: Iterable[Sequence[Float[Tensor, "rows *shape"]]]
    values: Float[Tensor, "pairs 2"]


def gradient_chunks(
    model: DiffusionModel,
    x: Float[Tensor, "*pairs c h w"],
    sample_id: str,
    condition: Shaped[Tensor, "1 *shape"] | None,
    schedule: NoiseSchedule,
    outputs: Sequence[str],
    batch_size: int = 16,
    apart: bool = False,
) -> Iterator[Chunk]:
    """The gradients of each output function, a batch of pairs at a time.

    Args:
        x: the encoded image, or one for each pair (a sampling trajectory).
        sample_id: keys the noise.
        condition: what the network is told; None for one that is told nothing.
        outputs: names in ``OUTPUT_FUNCTIONS``; they share each forward pass.
        batch_size: pairs per forward pass; it bounds memory and changes nothing else.
        apart: give each pair's gradient by itself.
    """
    pairs = schedule.pairs
    shape = tuple(x.shape[-3:])
    images = x.to(model.device).expand(len(pairs), *shape)
    for start in range(0, len(pairs), batch_size):
        numbers = range(start, min(start + batch_size, len(pairs)))
        chosen = pairs[start : numbers.stop]
        noise = torch.from_numpy(feature_noise(schedule.seed, sample_id, chosen, shape)).to(model.device)
        timesteps = torch.tensor([t for t, _ in chosen], device=model.device)
        told = None if condition is None else condition.expand(len(chosen), *condition.shape[1:])
        x_t = model.add_noise(images[start : numbers.stop], noise, timesteps)
        target = model.process.target(images[start : numbers.stop], noise, timesteps)
        batch = _Batch(x_t, target, timesteps, told, model.process.elbo_weights(timesteps))
        gradients, prediction = (_apart if apart else _summed)(model, batch, outputs)
        squares = [(prediction - target).double().square(), prediction.double().square()]
        yield Chunk(numbers, gradients, torch.stack([s.flatten(1).mean(1) for s in squares], dim=1))


@dataclass(frozen=True)
class _Batch:
    """One sample at several pairs."""

    x_t: Tensor
    target: Tensor
    timesteps: Tensor
    condition: Tensor | None
    elbo_weights: Tensor

    def repeated(self, rows: int) -> "_Batch":
        """The first pair, so many times."""
        parts = (self.x_t, self.target, self.timesteps, self.condition, self.elbo_weights)
        return _Batch(*(None if p is None else p[:1].expand(rows, *p.shape[1:]) for p in parts))  # type: ignore[arg-type]


Gradients = Iterable[Sequence[Tensor]]


def _summed(model: DiffusionModel, batch: _Batch, outputs: Sequence[str]) -> tuple[Gradients, Tensor]:
    parameters = list(model.parameters().values())
    prediction = model.predict(batch.x_t, batch.timesteps, batch.condition)
    scale = underflow_scale(model, prediction[0].numel())
    found = []
    for i, cotangent in enumerate(_cotangents(outputs, batch, prediction, scale)):
        more = i + 1 < len(outputs)
        gradients = torch.autograd.grad(prediction, parameters, cotangent, retain_graph=more, materialize_grads=True)
        found.append([gradient[None] for gradient in gradients])
    return _unscaled(zip(*found, strict=True), scale), prediction.detach()


def _apart(model: DiffusionModel, batch: _Batch, outputs: Sequence[str]) -> tuple[Gradients, Tensor]:
    if not _is_row_by_row(model, batch):
        return _apart_by_vmap(model, batch, outputs)
    recorder, prediction = _recorded(model, batch)
    scale = underflow_scale(model, prediction[0].numel())
    gradients = recorder.gradients(prediction, _cotangents(outputs, batch, prediction, scale))
    return _unscaled(gradients, scale), prediction.detach()


_row_by_row: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def _is_row_by_row(model: DiffusionModel, batch: _Batch) -> bool:
    """Whether :mod:`dtrak.gradients.rows` can split this network's gradients; found out once, on one row and on two.

    What does not come a row at a time (a table of positions, say) has another length than one of these.
    """
    if model.network not in _row_by_row:
        known = Recorder(model.network).knows_layers
        for rows in (1, 2) if known else ():
            recorder, _ = _recorded(model, batch.repeated(rows))
            known = known and recorder.keeps_apart(rows)
        _row_by_row[model.network] = known
    return _row_by_row[model.network]


def _recorded(model: DiffusionModel, batch: _Batch) -> tuple[Recorder, Tensor]:
    recorder = Recorder(model.network)
    with recorder.recording():
        return recorder, model.predict(batch.x_t, batch.timesteps, batch.condition)


def _apart_by_vmap(model: DiffusionModel, batch: _Batch, outputs: Sequence[str]) -> tuple[Gradients, Tensor]:
    tuned = {name: p.detach() for name, p in model.parameters().items()}
    scale = underflow_scale(model, batch.target[0].numel())

    def one(x: Tensor, target: Tensor, t: Tensor, told: Tensor | None, weight: Tensor) -> tuple[Any, ...]:
        def predict(parameters: dict[str, Tensor]) -> Tensor:
            keywords = model.conditioner.told(None if told is None else told[None])
            prediction = functional_call(model.network, parameters, (x[None].to(model.dtype), t[None]), keywords).sample
            return prediction if prediction.dtype == torch.float64 else prediction.float()

        prediction, pull = vjp(predict, tuned)  # type: ignore[misc]
        found = []
        for name in outputs:
            (gradients,) = pull(OUTPUT_FUNCTIONS[name](prediction, target[None], weight[None]) * scale)
            found.append(list(gradients.values()))
        return (prediction[0], *found)

    places = (0, 0, 0, None if batch.condition is None else 0, 0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no rule for vmap
        prediction, *found = vmap(one, in_dims=places)(
            batch.x_t, batch.target, batch.timesteps, batch.condition, batch.elbo_weights
        )
    return _unscaled(zip(*found, strict=True), scale), prediction


def _cotangents(outputs: Sequence[str], batch: _Batch, prediction: Tensor, scale: float) -> list[Tensor]:
    prediction = prediction.detach()
    return [OUTPUT_FUNCTIONS[name](prediction, batch.target, batch.elbo_weights) * scale for name in outputs]


def _unscaled(gradients: Gradients, scale: float) -> Gradients:
    return gradients if scale == 1 else ([gradient / scale for gradient in same] for same in gradients)
