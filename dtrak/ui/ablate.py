"""View models of the Ablate and Compare pages: which choices a study offers, and what a setting costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.attribution import Attributor, Features, Query
from dtrak.compare import Agreement, agreement, rank_biased_overlap
from dtrak.costs import Cost
from dtrak.errors import DtrakError
from dtrak.methods import METHODS
from dtrak.outputs import OUTPUT_FUNCTIONS
from dtrak.settings import Setting

TIMESTEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
DRAWS = (1, 2, 3, 5)
POWERS = np.arange(-4.0, 4.01, 0.5)

Scores = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Offer:
    """The values of one choice that are answered from what is stored, and those that are not."""

    values: list[Any]
    missing: list[Any]


def offer(attributor: Attributor, setting: Setting, choice: str) -> Offer:
    """What one choice of a setting can be changed to, with nothing else changed.

    Args:
        choice: a field of :class:`Setting`: output, timesteps, strategy, draws, projection_dim,
            projection_seed or checkpoint.
    """
    study = attributor.folder.study
    possible: dict[str, Callable[[], Sequence[Any]]] = {
        "output": lambda: list(OUTPUT_FUNCTIONS),
        "timesteps": lambda: sorted({*TIMESTEPS, *(c.timesteps for c in study.feature_sets)}),
        "strategy": lambda: ["uniform", "cumulative"],
        "draws": lambda: DRAWS,
        "projection_seed": lambda: sorted({c.projection_seed for c in study.feature_sets}),
        "projection_dim": lambda: _powers(attributor.sides(setting)[0].sources[0].config.projection_dim),
        "checkpoint": lambda: list(attributor.variants),
    }
    values = possible[choice]()
    works = [changed(attributor, setting, choice, value) is not None for value in values]
    return Offer(
        [value for value, ok in zip(values, works, strict=True) if ok],
        [value for value, ok in zip(values, works, strict=True) if not ok],
    )


def changed(attributor: Attributor, setting: Setting, choice: str, value: Any) -> Setting | None:
    """The setting with one choice changed, or None if that is not stored.

    Another checkpoint or strategy may be stored with other timesteps: then those are taken.
    """
    tried = setting.with_(**{choice: value})
    counts = (
        (tried.timesteps, None, *reversed(TIMESTEPS)) if choice in ("checkpoint", "strategy") else (tried.timesteps,)
    )
    for count in counts:
        if stored(attributor, tried.with_(timesteps=count)):
            return tried.with_(timesteps=count)
    return None


def stored(attributor: Attributor, setting: Setting) -> bool:
    """Whether everything of the training side is built for a setting."""
    try:
        for side in attributor.sides(setting):
            for source in side.sources:
                attributor.store(source.config)
    except DtrakError:
        return False
    return True


def _powers(largest: int) -> list[int]:
    found = [2**power for power in range(4, 24) if 2**power < largest]
    return [*found[-8:], largest]


@dataclass(frozen=True)
class SettingCost:
    """What a setting rests on.

    Attributes:
        seconds: that the parts of the build took which hold its features; None if not recorded.
        megabytes: of its features on disk.
        passes: forward and backward passes of the network that one query takes.
    """

    seconds: float | None
    megabytes: float
    passes: int


def setting_cost(attributor: Attributor, setting: Setting, costs: list[Cost]) -> SettingCost:
    """The cost of the training side's features under a setting, and of a query's."""
    stores = {}
    passes = 0
    for side in attributor.sides(setting):
        passes += len({pair for source in side.sources for pair in source.config.pairs()})
        for source in side.sources:
            store = attributor.store(source.config)
            stores[store.fingerprint] = store
    parts = [cost for cost in costs if set(cost.sets) & set(stores)]
    known = {fingerprint for cost in parts for fingerprint in cost.sets} >= set(stores)
    seconds = sum(cost.seconds for cost in parts) if known else None
    return SettingCost(seconds, sum(s.size for s in stores.values()) / 1e6, passes)


def damping_curve(
    attributor: Attributor, setting: Setting, query: Query, features: Features, powers: Sequence[float] = tuple(POWERS)
) -> list[float]:
    """Rank-biased overlap with the setting's own ranking, for each λ = 10^power; of methods of one model."""
    method = METHODS[setting.method]
    if method.damping is None:
        return []
    (side,) = attributor.sides(setting)
    reference, _ = attributor.scores(setting, query, features)
    vector = attributor.query_vector(setting, side, features, query)
    normaliser = setting.normaliser or method.normaliser
    dampings = 10.0 ** np.array(powers)
    every = attributor.readout(side).sweep(vector, dampings, normaliser, method.residual)
    return [rank_biased_overlap(scores, reference) for scores in every]


@dataclass(frozen=True)
class PairAgreement:
    """How alike two lanes are; numbers of the lanes from 0."""

    first: int
    second: int
    agreement: Agreement


def lane_agreements(scores: Sequence[Scores], top: int) -> list[PairAgreement]:
    """All pairs of lanes."""
    return [PairAgreement(i, j, agreement(scores[i], scores[j], top)) for i, j in combinations(range(len(scores)), 2)]
