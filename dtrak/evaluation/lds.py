"""The linear datamodeling score (LDS; Park et al., ICML 2023): do summed scores predict subset models' losses?

For a query x the predicted loss of a model trained on subset S is −Σ_{n∈S} τ(x, n), up to a constant. The
LDS is Spearman's correlation of predicted and measured losses over the subsets, averaged over queries. Its
interval is a bootstrap over subset models. All resamples are ranked at once: with c_j copies of model j in
a resample, the (centred, tie-averaged) rank of model i is  Σ_j c_j ([v_j < v_i] + ½ [v_j = v_i]) − M/2.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from scipy.stats import rankdata

from dtrak.utils.noise import keyed_generator

RESAMPLES = 1000
CHUNK = 2**24  # elements of one intermediate array


@dataclass(frozen=True)
class Score:
    """An LDS with its 95 % interval.

    Attributes:
        mean: mean over queries.
        low, high: the 2.5 % and 97.5 % quantiles over bootstrap resamples of the subset models.
        subsets: number of subset models.
    """

    mean: float
    low: float
    high: float
    subsets: int


def lds(
    scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "m n"], losses: Float[np.ndarray, "m q"]
) -> Float64[np.ndarray, " q"]:
    """The LDS of each query; 0 where predictions or losses are constant."""
    a, b = rankdata(predicted(scores, masks), axis=0), rankdata(losses, axis=0)
    a, b = a - a.mean(0), b - b.mean(0)
    length = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return (a * b).sum(0) / np.where(length > 0, length, 1.0)


def predicted(scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "m n"]) -> Float64[np.ndarray, "m q"]:
    """The predicted loss of each subset model, up to a constant: −Σ_{n∈S} τ(x, n)."""
    return -(masks.astype(np.float64) @ scores.T)


def lds_with_interval(
    scores: Float[np.ndarray, "q n"],
    masks: Bool[np.ndarray, "m n"],
    losses: Float[np.ndarray, "m q"],
    resamples: int = RESAMPLES,
) -> Score:
    """The mean LDS over queries, with a 95 % bootstrap interval over subset models."""
    means = bootstrap(scores, masks, losses, resamples)
    low, high = np.quantile(means, [0.025, 0.975])
    return Score(float(lds(scores, masks, losses).mean()), float(low), float(high), len(masks))


def bootstrap(
    scores: Float[np.ndarray, "q n"],
    masks: Bool[np.ndarray, "m n"],
    losses: Float[np.ndarray, "m q"],
    resamples: int = RESAMPLES,
    key: str = "",
) -> Float64[np.ndarray, " resamples"]:
    """The mean LDS over queries in each bootstrap resample of the subset models.

    Args:
        key: seeds the resamples; the same key gives the same resamples, so that differences are paired.
    """
    models, queries = losses.shape
    draws = keyed_generator("bootstrap", 0, key).integers(0, models, (resamples, models))
    copies = np.stack([np.bincount(row, minlength=models) for row in draws], axis=1).astype(np.float32)
    predictions = predicted(scores, masks)
    total = np.zeros(resamples)
    step = max(1, CHUNK // (models * resamples))
    for start in range(0, queries, step):
        a = _resampled_ranks(predictions[:, start : start + step], copies)
        b = _resampled_ranks(losses[:, start : start + step], copies)
        weighted = copies * a
        both, left = (np.einsum("qmb,qmb->qb", weighted, other) for other in (b, a))
        right = np.einsum("qmb,qmb->qb", copies * b, b)
        length = np.sqrt(left * right)
        total += (both / np.where(length > 0, length, 1.0)).sum(0)
    return total / queries


def _resampled_ranks(
    values: Float[np.ndarray, "m q"], copies: Float32[np.ndarray, "m b"]
) -> Float32[np.ndarray, "q m b"]:
    """Centred ranks of the models in each resample."""
    rows, models = values.T, len(copies)
    order = (np.sign(rows[:, :, None] - rows[:, None, :]).astype(np.float32) + 1) / 2
    ranks = order.reshape(-1, models) @ copies  # one large product: many small ones are slower
    return ranks.reshape(-1, *copies.shape) - np.float32(models / 2)
