"""What-if: the predicted effect of removing a set of training images, compared with random sets.

The scores predict that removing a set S raises the model's loss on the query by Σ_{n∈S} τ(x, n), up to a
positive factor. For random sets of R of N images that sum has mean R·τ̄ and variance R (1 − R/N) s², with s²
the sample variance of the scores (sampling without replacement).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from jaxtyping import Float

from dtrak.utils.noise import keyed_generator


@dataclass(frozen=True)
class Prediction:
    """The predicted effect of removing a set on one query.

    Attributes:
        count: R, the number of removed images.
        total: Σ τ over the set; positive if the model's loss on the query should rise.
        share: the set's share of all positive scores, in [0, 1].
        z: z-score of the total among random sets of the same size.
        beyond: share of random sets with a lower total, by the normal approximation, in [0, 1].
    """

    count: int
    total: float
    share: float
    z: float
    beyond: float


def predict(scores: Float[np.ndarray, " n"], rows: Sequence[int]) -> Prediction:
    """The predicted effect of removing some rows; z = 0 for no rows and for all rows."""
    chosen = scores[np.array(rows, dtype=int)]
    count, total = len(chosen), float(chosen.sum())
    positive = float(scores[scores > 0].sum())
    spread = sqrt(count * (1 - count / len(scores)) * float(scores.var(ddof=1))) if count else 0.0
    z = (total - count * float(scores.mean())) / spread if spread > 0 else 0.0
    share = float(chosen[chosen > 0].sum()) / positive if positive > 0 else 0.0
    return Prediction(count, total, share, z, 0.5 * (1 + erf(z / sqrt(2))))


def random_rows(size: int, rows: Sequence[int], key: str) -> list[int]:
    """As many random rows as ``rows``, drawn from the other rows, or from all if too few others remain.

    Args:
        size: N, the number of training samples.
        key: seeds the draw.
    """
    others = np.setdiff1d(np.arange(size), np.array(rows, dtype=int))
    pool = others if len(others) >= len(rows) else np.arange(size)
    return sorted(keyed_generator("what if", 0, key).permutation(pool)[: len(rows)].tolist())
