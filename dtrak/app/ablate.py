"""View models of the Ablate and Compare pages: what a setting costs, how stable it is, how alike lanes are."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

from dtrak.analysis.comparison import Agreement, agreement, rank_biased_overlap
from dtrak.build.costs import Cost
from dtrak.methods.attributor import Attributor, Features
from dtrak.methods.influence import GradientMethod
from dtrak.methods.query import Query
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting

POWERS = np.arange(-4.0, 4.01, 0.5)

Scores = Float[np.ndarray, " n"]


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
    if not isinstance(method, GradientMethod) or method.damping is None:
        return []
    (side,) = attributor.sides(setting)
    reference, _ = attributor.scores(setting, query, features)
    vector = method.query_vector(attributor, setting, side, features, query)
    dampings = 10.0 ** np.array(powers)
    every = method.sweep(attributor.readout(side), vector, dampings, setting)
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
