"""The stored feature sets that a setting uses, and their weights.

A feature is a mean over (timestep, draw) pairs. If the pairs are stored separately (``apart``), the feature of
any selection of them is a weighted sum of stored parts. Two output functions follow from others pair by pair:

    ∇ ‖ε_θ‖₂ = √D / (2 √m) · ∇ m,  m = mean(ε_θ²);      ∇ (w_t · loss) = w_t · ∇ loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dtrak.config import FeatureConfig, Split, Study, timestep_list
from dtrak.methods.base import LOSS, SQUARE
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError

DERIVED = {"l2-norm": SQUARE, "weighted-mse": LOSS}


@dataclass(frozen=True)
class Source:
    """A feature set with the weight of each of its parts; weights sum to 1 over a side's sources.

    Attributes:
        derived: the output function to derive from the set's own; None to use it as it is.
        unit: whether each part is scaled to length 1 before it is weighted.
    """

    config: FeatureConfig
    weights: tuple[float, ...]
    derived: str | None = None
    unit: bool = False

    @property
    def whole(self) -> bool:
        """Whether this is the unweighted mean of the set's parts."""
        return not (self.derived or self.unit) and len(set(self.weights)) == 1 and abs(sum(self.weights) - 1) < 1e-12


@dataclass(frozen=True)
class Side:
    """The features of one model under a setting.

    Attributes:
        sources: the feature sets that are summed.
        dim: k, the number of projected columns used.
        pairs: the (timestep, draw) pairs that are averaged.
    """

    sources: tuple[Source, ...]
    dim: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def apart(self) -> bool:
        """Whether the part of each pair is stored separately."""
        return all(source.config.apart for source in self.sources)


def select(study: Study, setting: Setting, output: str, model: str, split: Split = "train", unit: bool = False) -> Side:
    """The stored feature sets that give one model's features under a setting.

    Args:
        unit: average parts of length 1, which must be stored separately.

    Raises:
        DtrakError: the study does not list them; the hint says what to add.
    """
    base = DERIVED.get(output, output)
    sets = [c for c in study.sets_of(split) if c.model == model]
    sets = [c for c in sets if c.projection_seed == setting.projection_seed]
    for name, derived in ((output, None), (base, output)) if base != output else ((output, None),):
        candidates = [c for c in sets if c.output == name and (c.apart or not (derived or unit))]
        candidates = [c for c in candidates if c.projection_dim >= (setting.projection_dim or 1)]
        if not candidates:
            continue
        alike = [c for c in candidates if c.strategy == setting.strategy] or candidates
        count = setting.timesteps or alike[0].timesteps
        timesteps = timestep_list(count, setting.strategy)
        pairs = tuple((t, draw) for draw in range(setting.draws) for t in timesteps)
        for first in candidates:
            same = [c for c in candidates if _projection(c) == _projection(first)]
            if sources := _cover(same, pairs, derived, unit):
                return Side(sources, setting.projection_dim or first.projection_dim, pairs)
    what = [f"output: {base}", f"timesteps: {setting.timesteps or study.features[0].timesteps}", "apart: true"]
    what += [f"strategy: {setting.strategy}"] if setting.strategy != "uniform" else []
    what += [f"noise_draws: {setting.draws}"] if setting.draws > 1 else []
    what += [f"projection_seed: {setting.projection_seed}"] if setting.projection_seed else []
    what += [f"projection_dim: {setting.projection_dim}"] if setting.projection_dim else []
    what += [f"model: {model}"] if model != "last" else []
    raise DtrakError(
        f"'{setting.title}' needs features that study '{study.name}' does not list.",
        hint=f"Add '- {{{', '.join(what)}}}' under ablations in {study.source.name} and build.",
    )


def _projection(config: FeatureConfig) -> tuple[str, int, int]:
    return config.projection, config.projection_dim, config.noise_seed


def _cover(
    sets: list[FeatureConfig], pairs: tuple[tuple[int, int], ...], derived: str | None, unit: bool
) -> tuple[Source, ...]:
    for config in sets:
        if derived is None and tuple(config.pairs()) == pairs:
            parts = len(pairs) if config.apart else 1
            return (Source(config, (1 / parts,) * parts, unit=unit),)
    place: dict[tuple[int, int], tuple[FeatureConfig, int]] = {}
    for config in sets:
        for number, pair in enumerate(config.pairs() if config.apart else []):
            place.setdefault(pair, (config, number))
    if any(pair not in place for pair in pairs):
        return ()
    weights: dict[FeatureConfig, list[float]] = {}
    for pair in pairs:
        config, number = place[pair]
        weights.setdefault(config, [0.0] * len(config.pairs()))[number] += 1 / len(pairs)
    return tuple(Source(config, tuple(row), derived, unit) for config, row in weights.items())


def part_weights(
    source: Source,
    values: Callable[[], Float[np.ndarray, "rows pairs 2"]],
    latent_size: int,
    elbo: Callable[[list[int]], Float[np.ndarray, " pairs"]],
) -> Float[np.ndarray, "*rows parts"]:
    """The weight of each part, the same for all rows, or per row if the derived output function depends on the row.

    Args:
        values: returns mean((ε_θ − ε)²) and mean(ε_θ²) of each row and pair; called only if needed.
        latent_size: D, the number of elements of one prediction.
        elbo: maps timesteps to their ELBO weights.
    """
    weights = np.array(source.weights)
    if source.unit:  # a derived output function changes the length of a part only
        return weights
    if source.derived == "l2-norm":
        squares = values()[..., 1]
        return weights * np.sqrt(latent_size) / (2 * np.sqrt(np.maximum(squares, 1e-30)))
    if source.derived == "weighted-mse":
        return weights * elbo([t for t, _ in source.config.pairs()])
    return weights
