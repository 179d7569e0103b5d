"""Agreement of two rankings of the training images, and where they differ most."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import kendalltau

PERSISTENCE = 0.9  # of rank-biased overlap: the top ten carry 86 % of its weight
SHORTLIST = 50

Scores = Float[np.ndarray, " n"]


def ranking(scores: Scores) -> Int[np.ndarray, " n"]:
    """Rows from the highest score to the lowest; ties in row order."""
    return np.argsort(-scores, kind="stable")


def ranks(scores: Scores) -> Int[np.ndarray, " n"]:
    """The rank of each row, from 0."""
    order = ranking(scores)
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order))
    return found


def overlap(a: Scores, b: Scores, top: int = 10) -> float:
    """Share of a's ``top`` rows that are among b's ``top``."""
    top = min(top, len(a))
    return len(set(ranking(a)[:top].tolist()) & set(ranking(b)[:top].tolist())) / top


def rank_biased_overlap(a: Scores, b: Scores, persistence: float = PERSISTENCE) -> float:
    """(1 − p) Σ_d p^(d−1) · overlap at depth d, over full rankings, scaled to a maximum of 1.

    Webber, Moffat & Zobel, "A similarity measure for indefinite rankings", TOIS 2010.
    """
    first, second = ranks(a), ranks(b)
    later = np.sort(np.maximum(first, second))  # the depth from which each row is in both tops
    depth = np.arange(1, len(a) + 1)
    shared = np.searchsorted(later, depth - 1, side="right") / depth
    weights = persistence ** (depth - 1.0)
    return float((weights * shared).sum() / weights.sum())


def kendall(a: Scores, b: Scores) -> float:
    """Kendall's τ-b over all rows; 0 where one ranking is constant."""
    statistic = kendalltau(a, b).statistic
    return 0.0 if np.isnan(statistic) else float(statistic)


@dataclass(frozen=True)
class Agreement:
    """Three measures of agreement between two rankings."""

    overlap: float
    rank_biased_overlap: float
    kendall: float


def agreement(a: Scores, b: Scores, top: int = 10) -> Agreement:
    """All three measures of agreement."""
    return Agreement(overlap(a, b, top), rank_biased_overlap(a, b), kendall(a, b))


@dataclass(frozen=True)
class Disagreement:
    """A row that one ranking places much higher than the other; ranks from 1."""

    row: int
    place_a: int
    place_b: int


def disagreements(a: Scores, b: Scores, count: int = 8) -> list[Disagreement]:
    """The largest differences by |log rank_a − log rank_b|, among the rows in either top 50."""
    first, second = ranks(a) + 1, ranks(b) + 1
    gap = np.abs(np.log(first) - np.log(second))
    gap[np.minimum(first, second) > SHORTLIST] = -1
    rows = np.argsort(-gap, kind="stable")[:count]
    return [Disagreement(int(r), int(first[r]), int(second[r])) for r in rows if gap[r] > 0]


def contrast(a: Scores, b: Scores) -> Scores:
    """Why a rather than b: normalised difference τ_a/‖τ_a‖ − τ_b/‖τ_b‖.

    Scores are linear in the query, so these are the scores of the query q_a/‖τ_a‖ − q_b/‖τ_b‖. The norms make
    the two comparable: scores of different queries have no common unit.
    """
    return a / (np.linalg.norm(a) or 1.0) - b / (np.linalg.norm(b) or 1.0)
