"""View models of the Ablate and Compare pages: which choices a study offers, and what a setting costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.attribution import Attributor, Features, Query
from dtrak.compare import Agreement, agreement, rank_biased_overlap
from dtrak.config import Study
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
class Choices:
    """What can be chosen from where a setting stands, with nothing else changed; ``missing`` is not stored."""

    outputs: list[str]
    timesteps: list[int]
    strategies: list[str]
    draws: list[int]
    projection_dims: list[int]
    projection_seeds: list[int]
    checkpoints: list[str]
    missing: list[str]


def choices(attributor: Attributor, setting: Setting) -> Choices:
    """Every single change of a setting that is answered from what is stored."""
    study = attributor.folder.study
    missing: list[str] = []

    def possible(name: str, values: Sequence[Any], title: str) -> list[Any]:
        found = []
        for value in values:
            if stored(attributor, setting.with_(**{name: value})):
                found.append(value)
            else:
                missing.append(title.format(value))
        return found

    counts = sorted({*TIMESTEPS, *(c.timesteps for c in study.feature_sets)})
    seeds = sorted({c.projection_seed for c in study.feature_sets})
    return Choices(
        outputs=possible("output", list(OUTPUT_FUNCTIONS), "{}"),
        timesteps=possible("timesteps", counts, "K = {}"),
        strategies=[
            name
            for name in ("uniform", "cumulative")
            if any(stored(attributor, setting.with_(strategy=name, timesteps=k)) for k in (setting.timesteps, 5, 2))
        ],
        draws=possible("draws", DRAWS, "{} draws"),
        projection_dims=_powers(study),
        projection_seeds=possible("projection_seed", seeds, "projection {}"),
        checkpoints=[m for m in attributor.variants if _checkpoint(attributor, setting, m) is not None],
        missing=missing,
    )


def stored(attributor: Attributor, setting: Setting) -> bool:
    """Whether everything of the training side is built for a setting."""
    try:
        for side in attributor.sides(setting):
            for source in side.sources:
                attributor.store(source.config)
    except DtrakError:
        return False
    return True


def with_checkpoint(attributor: Attributor, setting: Setting, name: str) -> Setting:
    """The setting at another checkpoint, with as many timesteps as are stored there.

    Raises:
        DtrakError: nothing is.
    """
    found = _checkpoint(attributor, setting, name)
    if found is None:
        raise DtrakError(f"Nothing is stored of '{name}' for this setting.", hint="Build it, or choose another one.")
    return found


def _checkpoint(attributor: Attributor, setting: Setting, name: str) -> Setting | None:
    tried = setting.with_(checkpoint=name)
    for count in (tried.timesteps, None, *TIMESTEPS):
        if stored(attributor, tried.with_(timesteps=count)):
            return tried.with_(timesteps=count)
    return None


def _powers(study: Study) -> list[int]:
    largest = max(c.projection_dim for c in study.features)
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
        passes += len(side.pairs)
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
    """Rank-biased overlap with the setting's own ranking, for each λ = 10^power."""
    if METHODS[setting.method].damping is None:
        return []
    for side in attributor.sides(setting):
        _ = attributor.readout(side).kernel  # one decomposition serves every λ
    reference, _ = attributor.scores(setting, query, features)
    return [
        rank_biased_overlap(attributor.scores(setting.with_(damping=10.0**p), query, features)[0], reference)
        for p in powers
    ]


@dataclass(frozen=True)
class PairAgreement:
    """How alike two lanes are; numbers of the lanes from 0."""

    first: int
    second: int
    agreement: Agreement


def lane_agreements(scores: Sequence[Scores], top: int) -> list[PairAgreement]:
    """All pairs of lanes."""
    return [PairAgreement(i, j, agreement(scores[i], scores[j], top)) for i, j in combinations(range(len(scores)), 2)]
