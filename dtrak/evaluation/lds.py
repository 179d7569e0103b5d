"""The linear datamodeling score (LDS; Park et al., ICML 2023): do summed scores predict subset models' losses?

For a query x the predicted loss of a model trained on subset S is −Σ_{n∈S} τ(x, n), up to a constant. The
LDS is Spearman's correlation of predicted and measured losses over the subsets, averaged over queries.

Its interval is a bootstrap over both subset models and queries. All resamples are ranked at once: with c_j copies
of model j in a resample, the (centred, tie-averaged) rank of model i is  Σ_j c_j ([v_j < v_i] + ½ [v_j = v_i]) − M/2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int
from scipy.stats import norm, rankdata

from dtrak.utils.noise import keyed_generator

Means = Float64[np.ndarray, " places"]
RESAMPLES = 1000
CHUNK = 2**24  # elements of one intermediate array


@dataclass(frozen=True)
class Score:
    """An LDS with its 95 % interval.

    Attributes:
        mean: mean over queries.
        low, high: of the interval over subset models and queries.
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
    return correlations(rankdata(predicted(scores, masks), axis=0), rankdata(losses, axis=0))


def partial_lds(
    scores: Float[np.ndarray, "q n"],
    masks: Bool[np.ndarray, "m n"],
    losses: Float[np.ndarray, "m q"],
    groups: Sequence[Sequence[str]],
) -> Float64[np.ndarray, " q"]:
    """The LDS of each query with the sizes of groups taken out: regressed on them, predictions and losses alike.

    Args:
        groups: for each way of grouping, such as by label, the group of each training image.
    """
    left = [without_counts(values, masks, groups) for values in (predicted(scores, masks), losses)]
    return correlations(*(rankdata(values, axis=0) for values in left))


def without_counts(
    values: Float[np.ndarray, "m q"], masks: Bool[np.ndarray, "m n"], groups: Sequence[Sequence[str]]
) -> Float64[np.ndarray, "m q"]:
    """What a regression on the number of images of each group leaves of values of the subset models.

    Args:
        groups: for each way of grouping, the group of each training image.
    """
    counts = []
    for members in groups:
        _, group = np.unique(np.asarray(members), return_inverse=True)
        counts.append(masks.astype(np.float64) @ np.eye(group.max() + 1)[group])
    return residuals(values, np.concatenate(counts, axis=1))


def residuals(values: Float[np.ndarray, "m q"], regressors: Float[np.ndarray, "m f"]) -> Float64[np.ndarray, "m q"]:
    """What a linear regression on some numbers of each subset model, and a constant, leaves of values."""
    columns = np.column_stack([np.ones(len(regressors)), regressors])
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    basis = left[:, sizes > 1e-9 * sizes[0]]
    residual = values - basis @ (basis.T @ values)
    return np.where(np.abs(residual) > 1e-9 * np.abs(values).max(0), residual, 0.0)


def correlations(a: Float[np.ndarray, "m q"], b: Float[np.ndarray, "m q"]) -> Float64[np.ndarray, " q"]:
    """Pearson's correlation of each pair of columns; 0 where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    length = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return (a * b).sum(0) / np.where(length > 0, length, 1.0)


def predicted(scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "m n"]) -> Float64[np.ndarray, "m q"]:
    """The predicted loss of each subset model, up to a constant: −Σ_{n∈S} τ(x, n)."""
    return -(masks.astype(np.float64) @ scores.T)


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap distribution; differences of two are paired.

    Attributes:
        value: on all models and queries.
        resampled: in each resample of both models and queries, of models alone, and of queries alone.
        jackknifed: without each model in turn, then without each query in turn.
    """

    value: float
    resampled: Float[np.ndarray, "ways resamples"]
    jackknifed: Float[np.ndarray, " left_out"]

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.resampled - other.resampled, self.jackknifed - other.jackknifed)

    @property
    def distribution(self) -> Float64[np.ndarray, " resamples"]:
        """The two-way resamples, around the statistic and scaled to its variance.

        With variances V_m of models, V_q of queries and V_i of their interaction, resampling models alone gives
        V_m + V_i, queries alone V_q + V_i, and both V_m + V_q + 3 V_i: too much (Owen, AoAS 2007). The statistic has
        V_m + V_q + V_i = 2 (models alone + queries alone) − both. The resamples' own bias, of repeated models that
        tie with themselves, is taken out: the estimand is the LDS at this number of models.
        """
        both, models, queries = self.resampled.var(1)
        wanted = max(2 * (models + queries) - both, models, queries)
        scale = np.sqrt(min(wanted / both, 1.0)) if both > 0 else 1.0
        return self.value + scale * (self.resampled[0] - self.resampled[0].mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, bias-corrected and accelerated (BCa; Efron, JASA 1987)."""
        drawn = self.distribution
        if drawn.std() < 1e-12:
            return self.value, self.value
        below = (drawn < self.value).mean() + 0.5 * (drawn == self.value).mean()
        bias = norm.ppf(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
        apart = self.jackknifed.mean() - self.jackknifed
        scale = (apart**2).sum() ** 1.5
        acceleration = (apart**3).sum() / (6 * scale) if scale > 0 else 0.0
        wanted = bias + norm.ppf([0.025, 0.975])
        levels = norm.cdf(bias + wanted / (1 - acceleration * wanted))
        low, high = np.quantile(drawn, levels)
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """Two-sided, of the null hypothesis that the statistic is 0; by the normal approximation."""
        spread = float(self.distribution.std())
        return float(2 * norm.sf(abs(self.value) / spread)) if spread > 0 else 1.0


class Bootstrap:
    """The two-way bootstrap of a mean LDS over subset models and queries.

    Queries are resampled within their strata. Estimates of one object are paired.

    Args:
        losses: of each subset model on each query.
        strata: of each query, such as its label; default a single one.
        key: seeds the resamples.
    """

    def __init__(
        self,
        losses: Float[np.ndarray, "m q"],
        strata: Sequence[str] | None = None,
        resamples: int = RESAMPLES,
        key: str = "",
    ):
        models, queries = losses.shape
        self.resamples = resamples
        draws = keyed_generator("bootstrap", 0, key).integers(0, models, (resamples, models))
        copies = np.stack([np.bincount(row, minlength=models) for row in draws], axis=1)
        without = 1 - np.eye(models, dtype=int)
        self._copies = np.concatenate([np.ones((models, 1), int), copies, without], axis=1).astype(np.float32)
        self.weights = _query_weights(strata or ("",) * queries, resamples, key)
        self._losses = losses
        self._ranked: Float32[np.ndarray, "q m b"] | None = None

    def table(self, predictions: Float[np.ndarray, "m q"]) -> Float64[np.ndarray, "q b"]:
        """The LDS of each query: on all models, in each resample of the models, and without each model."""
        step = max(1, CHUNK // (len(predictions) * self._copies.shape[1]))
        queries = predictions.shape[1]
        fits = step >= queries
        found = []
        for start in range(0, queries, step):
            a = _resampled_ranks(predictions[:, start : start + step], self._copies)
            if self._ranked is None or not fits:
                self._ranked = _resampled_ranks(self._losses[:, start : start + step], self._copies)
            b = self._ranked
            weighted = self._copies * a
            both, left = (np.einsum("qmb,qmb->qb", weighted, other) for other in (b, a))
            right = np.einsum("qmb,qmb->qb", self._copies * b, b)
            length = np.sqrt(left * right)
            found.append(both / np.where(length > 0, length, 1.0))
        return np.concatenate(found).astype(np.float64)

    def means(self, table: Float64[np.ndarray, "q b"]) -> Means:
        """The mean over queries of a table, in every way of resampling."""
        values, drawn = table[:, 0], slice(1, 1 + self.resamples)
        resampled = [(table[:, drawn] * self.weights).sum(0), table[:, drawn].mean(0), values @ self.weights]
        without = (values.sum() - values) / max(len(values) - 1, 1)
        return np.concatenate([[values.mean()], *resampled, table[:, 1 + self.resamples :].mean(0), without])

    def as_estimate(self, means: Means) -> Estimate:
        """The estimate of some means from :meth:`means`, or of a function of them."""
        resampled = means[1 : 1 + 3 * self.resamples].reshape(3, -1)
        return Estimate(float(means[0]), resampled, means[1 + 3 * self.resamples :])

    def estimate(self, scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "m n"]) -> Estimate:
        """The mean LDS of some scores."""
        return self.as_estimate(self.means(self.table(predicted(scores, masks))))


def lds_with_interval(
    scores: Float[np.ndarray, "q n"],
    masks: Bool[np.ndarray, "m n"],
    losses: Float[np.ndarray, "m q"],
    resamples: int = RESAMPLES,
    strata: Sequence[str] | None = None,
) -> Score:
    """The mean LDS over queries, with a 95 % bootstrap interval over subset models and queries.

    Args:
        strata: of each query; queries are resampled within them.
    """
    found = Bootstrap(losses, strata, resamples).estimate(scores, masks)
    return Score(float(lds(scores, masks, losses).mean()), *found.interval, len(masks))


def reliability(first: Float[np.ndarray, "m q"], second: Float[np.ndarray, "m q"]) -> Float64[np.ndarray, " q"]:
    """Spearman's correlation of the losses of two trainings on the same subsets, for each query."""
    return correlations(rankdata(first, axis=0), rankdata(second, axis=0))


def ceiling(reliability: float, seeds: int) -> float:
    """The LDS of a perfect prediction: √ of the reliability of losses averaged over ``seeds`` (Spearman–Brown)."""
    one = max(reliability, 0.0)
    return float(np.sqrt(seeds * one / (1 + (seeds - 1) * one)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm, 1979)."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(np.array(p_values)[order] * factors), 1.0)
    found = np.empty(len(p_values))
    found[order] = adjusted
    return found.tolist()


def _query_weights(strata: Sequence[str], resamples: int, key: str) -> Float64[np.ndarray, "q b"]:
    """How often each query is drawn in each resample, as a share; every stratum keeps its size."""
    random = keyed_generator("bootstrap queries", 0, key)
    weights = np.zeros((len(strata), resamples))
    for name in dict.fromkeys(strata):
        rows: Int[np.ndarray, " rows"] = np.flatnonzero(np.array(strata) == name)
        weights[rows] = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), resamples).T
    return weights / len(strata)


def _resampled_ranks(
    values: Float[np.ndarray, "m q"], copies: Float32[np.ndarray, "m b"]
) -> Float32[np.ndarray, "q m b"]:
    """Centred ranks of the models in each resample."""
    rows, models = values.T, len(copies)
    order = (np.sign(rows[:, :, None] - rows[:, None, :]).astype(np.float32) + 1) / 2
    ranks = order.reshape(-1, models) @ copies  # one large product: many small ones are slower
    return ranks.reshape(-1, *copies.shape[:1], copies.shape[1]) - copies.sum(0) / 2
