"""Agreement of two rankings of the training images, and where they differ most.

A ranking is known in full, or as far as an index tells: its first rows, and the scores of a random sample of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import kendalltau

from dtrak.methods.base import Search
from dtrak.methods.ranking import Ranking, Scored, top_scored

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


@dataclass(frozen=True)
class Ranked:
    """A ranking as far as it is known.

    Attributes:
        total: the number of ranked rows.
        first: rows from the highest score on: all of them, or those that an index listed.
        rows: ascending rows whose scores are known: all of them, or a random sample.
        scores: theirs.
    """

    total: int
    first: Int[np.ndarray, " m"]
    rows: Int[np.ndarray, " s"]
    scores: Float[np.ndarray, " s"]

    @classmethod
    def of(cls, scores: Scores) -> "Ranked":
        """A ranking that is known in full."""
        return cls(len(scores), ranking(scores), np.arange(len(scores)), scores)

    @classmethod
    def found(cls, answer: Ranking) -> "Ranked":
        """What is known of a ranking without a pass over all rows where that takes long; else all of it."""
        if answer.search is None or not answer.large:
            return cls.of(answer.scores)
        return cls(answer.table.train_size, answer.search.rows[0], answer.search.index.sampled_rows, answer.sample)

    def places(self, rows: Int[np.ndarray, " r"]) -> Int[np.ndarray, " r"]:
        """The ranks of some rows, from 0; for those that are not listed, the number of listed ones."""
        order = np.argsort(self.first)
        at = np.searchsorted(self.first, rows, sorter=order).clip(max=len(order) - 1)
        return np.where(self.first[order[at]] == rows, order[at], len(self.first))

    def place_text(self, place: int) -> str:
        """A rank from 1, in words."""
        return f"{place:,}" if place <= len(self.first) else f"> {len(self.first):,}"


def overlap(a: Ranked, b: Ranked, top: int = 10) -> float:
    """Share of a's ``top`` rows that are among b's ``top``."""
    top = min(top, a.total)
    return len(set(a.first[:top].tolist()) & set(b.first[:top].tolist())) / top


def rank_biased_overlap(a: Ranked, b: Ranked, persistence: float = PERSISTENCE) -> float:
    """(1 − p) Σ_d p^(d−1) · overlap at depth d, over the ranks that both list, scaled to a maximum of 1.

    Webber, Moffat & Zobel, "A similarity measure for indefinite rankings", TOIS 2010.
    """
    deepest = min(len(a.first), len(b.first))
    shared = np.intersect1d(a.first[:deepest], b.first[:deepest])
    later = np.sort(np.maximum(a.places(shared), b.places(shared)))  # the depth from which each row is in both tops
    depth = np.arange(1, deepest + 1)
    overlaps = np.searchsorted(later, depth - 1, side="right") / depth
    weights = persistence ** (depth - 1.0)
    return float((weights * overlaps).sum() / weights.sum())


def kendall(a: Ranked, b: Ranked) -> float:
    """Kendall's τ-b over the rows whose scores both know; 0 where one ranking is constant."""
    _, first, second = np.intersect1d(a.rows, b.rows, assume_unique=True, return_indices=True)
    statistic = kendalltau(a.scores[first], b.scores[second]).statistic
    return 0.0 if np.isnan(statistic) else float(statistic)


@dataclass(frozen=True)
class Agreement:
    """Three measures of agreement between two rankings."""

    overlap: float
    rank_biased_overlap: float
    kendall: float


def agreement(a: Ranked, b: Ranked, top: int = 10) -> Agreement:
    """All three measures of agreement."""
    return Agreement(overlap(a, b, top), rank_biased_overlap(a, b), kendall(a, b))


@dataclass(frozen=True)
class Disagreement:
    """A row that one ranking places much higher than the other; ranks from 1, see :meth:`Ranked.place_text`."""

    row: int
    place_a: int
    place_b: int


def disagreements(a: Ranked, b: Ranked, count: int = 8) -> list[Disagreement]:
    """The largest differences by |log rank_a − log rank_b|, among the rows in either top 50."""
    rows = np.union1d(a.first[:SHORTLIST], b.first[:SHORTLIST])
    first, second = a.places(rows) + 1, b.places(rows) + 1
    gap = np.abs(np.log(first) - np.log(second))
    largest = np.argsort(-gap, kind="stable")[:count]
    return [Disagreement(int(rows[i]), int(first[i]), int(second[i])) for i in largest if gap[i] > 0]


def paired(
    a: Ranking, b: Ranking, wanted: Sequence[int], most: int
) -> tuple[Int[np.ndarray, " p"], Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """Rows with both rankings' scores: those that are wanted, and at most ``most`` others that both know."""
    known, listed = [Ranked.found(one) for one in (a, b)], np.array(wanted, int)
    others = np.setdiff1d(np.intersect1d(known[0].rows, known[1].rows, assume_unique=True), listed)
    others = others[:: -(-len(others) // most) or 1]
    first, second = (
        np.concatenate([one.scores[np.searchsorted(one.rows, others)], answer.scores_of(listed)])
        for one, answer in zip(known, (a, b), strict=True)
    )
    return np.concatenate([others, listed]), first, second


def contrast(a: Scores, b: Scores) -> Scores:
    """Why a rather than b: normalised difference τ_a/‖τ_a‖ − τ_b/‖τ_b‖.

    Scores are linear in the query, so these are the scores of the query q_a/‖τ_a‖ − q_b/‖τ_b‖. The norms make
    the two comparable: scores of different queries have no common unit.
    """
    return a / (np.linalg.norm(a) or 1.0) - b / (np.linalg.norm(b) or 1.0)


def contrasted(a: Ranking, b: Ranking, count: int, sign: int = 1) -> list[Scored]:
    """The first samples by :func:`contrast`, of one method on two queries.

    Where a pass over all rows takes long, it is searched for as one more query, with the norms of the sample.

    Args:
        sign: 1 for what speaks for a, −1 for what speaks for b.
    """
    if a.search is None or b.search is None or not (a.large and b.large):
        return top_scored(contrast(a.scores, b.scores), a.table, count, sign)
    first, second = (
        one.q / (np.sqrt(np.square(one.sample()).mean() * a.table.train_size) or 1.0) for one in (a.search, b.search)
    )
    found = Search.of(a.search.index, first - second, count, a.damping)
    why = replace(a, search=found, given=lambda: contrast(a.scores, b.scores), top=count)
    return why.proponents if sign > 0 else why.opponents
