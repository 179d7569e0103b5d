"""View models of the Ablate and Compare pages: cost of a setting, sensitivity to λ, agreement of rankings."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dtrak.analysis.comparison import Agreement, Ranked, agreement, rank_biased_overlap
from dtrak.build.costs import Cost
from dtrak.methods.attributor import Attributor, Features
from dtrak.methods.influence import GradientMethod
from dtrak.methods.query import Query
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting

POWERS = np.arange(-4.0, 4.01, 0.5)  # log₁₀ λ


@dataclass(frozen=True)
class SettingCost:
    """What a setting costs.

    Attributes:
        seconds: build time of its feature sets; None if not recorded.
        megabytes: size of its features on disk.
        passes: forward and backward passes of the network per query.
    """

    seconds: float | None
    megabytes: float
    passes: int


def setting_cost(attributor: Attributor, setting: Setting, costs: list[Cost]) -> SettingCost:
    """The cost of a setting's training features and of a query.

    Args:
        costs: of the builds, as recorded.
    """
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
    """Rank-biased overlap with the setting's own ranking at each λ = 10^power; empty for methods without λ.

    The method must use a single model.
    """
    method = METHODS[setting.method]
    if not isinstance(method, GradientMethod) or method.damping is None:
        return []
    (side,) = attributor.sides(setting)
    reference, _ = attributor.scores(setting, query, features)
    vector = method.query_vector(attributor, setting, side, features, query)
    dampings = 10.0 ** np.array(powers)
    every = method.sweep(attributor.readout(side), vector, dampings, setting)
    own = Ranked.of(reference)
    return [rank_biased_overlap(Ranked.of(scores), own) for scores in every]


@dataclass(frozen=True)
class PairAgreement:
    """The agreement of two lanes, numbered from 0."""

    first: int
    second: int
    agreement: Agreement


def lane_agreements(found: Sequence[Ranked], top: int) -> list[PairAgreement]:
    """The agreement of every pair of lanes.

    Args:
        top: number of places for the overlap.
    """
    return [PairAgreement(i, j, agreement(found[i], found[j], top)) for i, j in combinations(range(len(found)), 2)]
