"""Gradients of output functions for one sample: ∇_θ f(ε_θ(x_t, t, c)) at several (t, draw) pairs.

A feature is a *sum* over one sample's pairs, so it needs no per-sample gradients: a batch is one sample
at several pairs, and an ordinary backward pass sums over them. The network does not mix rows of a
batch, so the sum is exact, any module works (fused attention, LoRA), and the cost is that of training.
If the gradient of each pair is needed, :mod:`dtrak.gradients.rows` computes it for networks of common
layers, at little extra cost for a LoRA. Other networks use ``vmap`` over the pairs, which is slower.
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

from dtrak.gradients.outputs import OUTPUT_FUNCTIONS, split_view
from dtrak.gradients.rows import Recorder
from dtrak.models.base import DiffusionModel, activations_kept, underflow_scale
from dtrak.utils.noise import feature_noise


@dataclass(frozen=True)
class NoiseSchedule:
    """The (timestep, draw) pairs of a feature, with equal weights.

    Attributes:
        timesteps: in [0, 1000); a sampler's may lie between integers.
        draws: number of noise draws per timestep.
        seed: noise seed; see :mod:`dtrak.utils.noise`.
        first_draw: number of the first draw.
    """

    timesteps: tuple[float, ...]
    draws: int = 1
    seed: int = 0
    first_draw: int = 0

    @property
    def pairs(self) -> list[tuple[float, int]]:
        """All (timestep, draw) pairs, draws outermost."""
        draws = range(self.first_draw, self.first_draw + self.draws)
        return [(t, draw) for draw in draws for t in self.timesteps]


@dataclass(frozen=True)
class Chunk:
    """The results of one forward pass.

    Attributes:
        pairs: indices of the pairs.
        gradients: for each tuned parameter in the network's order, the gradient of each output function, with one
            row per pair or a single row, their sum. Iterate only once: they may be computed lazily.
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
    mask: Float[Tensor, "h w"] | None = None,
) -> Iterator[Chunk]:
    """The gradients of each output function, a batch of pairs at a time.

    Args:
        x: the encoded image, or one for each pair (a sampling trajectory).
        sample_id: keys the noise.
        condition: the conditioning; None for an unconditional network.
        outputs: names of output functions; they share each forward pass.
        batch_size: pairs per forward pass; affects only memory and speed.
        apart: return the gradient of each pair instead of their sum.
        mask: weights of the places that the output functions look at; None for all.
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
        batch = _Batch(x_t, target, timesteps, told, model.process.elbo_weights(timesteps), mask)
        gradients, prediction = (_apart if apart else _summed)(model, batch, outputs)
        if mask is not None:
            prediction, target = prediction * mask, target * mask
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
    mask: Tensor | None = None

    def repeated(self, rows: int) -> "_Batch":
        """The first pair, repeated ``rows`` times."""
        parts = (self.x_t, self.target, self.timesteps, self.condition, self.elbo_weights)
        return _Batch(*(None if p is None else p[:1].expand(rows, *p.shape[1:]) for p in parts))  # type: ignore[arg-type]


Gradients = Iterable[Sequence[Tensor]]


def _summed(model: DiffusionModel, batch: _Batch, outputs: Sequence[str]) -> tuple[Gradients, Tensor]:
    parameters = list(model.parameters().values())
    prediction = model.predict(batch.x_t, batch.timesteps, batch.condition)
    scale = underflow_scale(model, prediction[0].numel())
    found = []
    for i, v in enumerate(_cotangents(model, outputs, batch, prediction, scale)):
        more = i + 1 < len(outputs)
        gradients = torch.autograd.grad(prediction, parameters, v, retain_graph=more, materialize_grads=True)
        found.append([gradient[None] for gradient in gradients])
    return _unscaled(zip(*found, strict=True), scale), prediction.detach()


def _apart(model: DiffusionModel, batch: _Batch, outputs: Sequence[str]) -> tuple[Gradients, Tensor]:
    if not _is_row_by_row(model, batch):
        return _apart_by_vmap(model, batch, outputs)
    recorder, prediction = _recorded(model, batch)
    scale = underflow_scale(model, prediction[0].numel())
    gradients = recorder.gradients(prediction, _cotangents(model, outputs, batch, prediction, scale))
    return _unscaled(gradients, scale), prediction.detach()


_row_by_row: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def _is_row_by_row(model: DiffusionModel, batch: _Batch) -> bool:
    """Whether :mod:`dtrak.gradients.rows` supports this network; tested once per network, with one row and with two.

    An input without a batch axis (such as a table of positions) does not have the right length in both tests.
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
            def network(*arguments: Any, **keywords: Any) -> Any:
                return functional_call(model.network, parameters, arguments, keywords)

            return model.predict_by(network, x[None], t[None], None if told is None else told[None])

        prediction, pull = vjp(predict, tuned)  # type: ignore[misc]
        found = []
        for name in outputs:
            v = cotangent(
                model, name, prediction, _Batch(x[None], target[None], t[None], told, weight[None], batch.mask)
            )
            (gradients,) = pull(v * scale)
            found.append(list(gradients.values()))
        return (prediction[0], *found)

    places = (0, 0, 0, None if batch.condition is None else 0, 0)
    # Fused attention has no batching rule for vmap, and gradient checkpointing cannot be transformed.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), activations_kept(model.network):
        prediction, *found = vmap(one, in_dims=places)(
            batch.x_t, batch.target, batch.timesteps, batch.condition, batch.elbo_weights
        )
    return _unscaled(zip(*found, strict=True), scale), prediction


def _cotangents(
    model: DiffusionModel, outputs: Sequence[str], batch: _Batch, prediction: Tensor, scale: float
) -> list[Tensor]:
    return [cotangent(model, name, prediction.detach(), batch) * scale for name in outputs]


def cotangent(model: DiffusionModel, output: str, prediction: Tensor, batch: _Batch) -> Tensor:
    """∂f/∂prediction of an output function, whether it looks at the prediction itself, at ε̂ or at x̂₀.

    ε̂ and x̂₀ are linear in the prediction, a·x_t + b·prediction, so the cotangent is b times that of the function. With
    a mask, f sees zeros elsewhere.
    """
    view, name = split_view(output)
    seen, target, b = prediction, batch.target, torch.ones(())
    if view:
        a, b = (c.view(-1, *[1] * (prediction.ndim - 1)) for c in model.process.view(view, batch.timesteps))
        seen = a * batch.x_t + b * prediction
    if batch.mask is not None:
        seen, target = seen * batch.mask, target * batch.mask
    found = OUTPUT_FUNCTIONS[name](seen, target, batch.elbo_weights)
    return b * (found if batch.mask is None else found * batch.mask)


def _unscaled(gradients: Gradients, scale: float) -> Gradients:
    return gradients if scale == 1 else ([gradient / scale for gradient in same] for same in gradients)
