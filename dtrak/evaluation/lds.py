"""The linear datamodeling score (Park et al., 2023): do summed scores predict what a subset model loses?

For a query, a subset S is predicted to lose −Σ_{n∈S} τ(x, n); the LDS is Spearman's correlation of
prediction and truth over the subsets, averaged over queries.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from dtrak.noise import keyed_generator

BOOTSTRAP = 1000


@dataclass(frozen=True)
class Score:
    """An LDS with its uncertainty.

    Attributes:
        mean: over queries.
        low, high: 95 % of bootstrap resamples of the subset models lie between.
        subsets: how many subset models.
    """

    mean: float
    low: float
    high: float
    subsets: int


def lds(
    scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "m n"], losses: Float[np.ndarray, "m q"]
) -> Float[np.ndarray, " q"]:
    """The LDS of each query; 0 where a side is constant."""
    predicted = -(masks.astype(np.float64) @ scores.T)
    return _correlation(rankdata(predicted, axis=0), rankdata(losses, axis=0))


def lds_with_interval(
    scores: Float[np.ndarray, "q n"],
    masks: Bool[np.ndarray, "m n"],
    losses: Float[np.ndarray, "m q"],
    resamples: int = BOOTSTRAP,
) -> Score:
    """The mean LDS over queries, with a bootstrap interval over subset models."""
    predicted = -(masks.astype(np.float64) @ scores.T)
    count = len(masks)
    draws = keyed_generator("bootstrap", 0, "").integers(0, count, (resamples, count))
    means = [float(_correlation(rankdata(predicted[d], axis=0), rankdata(losses[d], axis=0)).mean()) for d in draws]
    low, high = np.quantile(means, [0.025, 0.975])
    return Score(float(lds(scores, masks, losses).mean()), float(low), float(high), count)


def _correlation(a: Float[np.ndarray, "m q"], b: Float[np.ndarray, "m q"]) -> Float[np.ndarray, " q"]:
    a, b = a - a.mean(0), b - b.mean(0)
    length = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return (a * b).sum(0) / np.where(length > 0, length, 1.0)
