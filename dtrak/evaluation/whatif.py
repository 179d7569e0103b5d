"""What if some training images had not been there? The linear prediction of attribution, set against chance.

The scores predict that leaving out a set S raises what the model loses on the picture by Σ_{n∈S} τ(x, n),
up to a positive factor. Random sets of the same size have that sum with mean R·τ̄ and variance
R (1 − R/N) s², s² the sample variance of the scores (sampling without replacement).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from jaxtyping import Float

from dtrak.utils.noise import keyed_generator


@dataclass(frozen=True)
class Prediction:
    """What leaving out a set is predicted to do to one picture.

    Attributes:
        count: R, how many images.
        total: Σ τ over them; positive: the picture should change for the worse, for the model.
        share: of all positive scores.
        z: of the total among random sets of the same size.
        beyond: the share of random sets that reach less, by the normal approximation.
    """

    count: int
    total: float
    share: float
    z: float
    beyond: float


def predict(scores: Float[np.ndarray, " n"], rows: Sequence[int]) -> Prediction:
    """The prediction for leaving out some rows; empty and whole sets have z = 0."""
    chosen = scores[np.array(rows, dtype=int)]
    count, total = len(chosen), float(chosen.sum())
    positive = float(scores[scores > 0].sum())
    spread = sqrt(count * (1 - count / len(scores)) * float(scores.var(ddof=1))) if count else 0.0
    z = (total - count * float(scores.mean())) / spread if spread > 0 else 0.0
    share = float(chosen[chosen > 0].sum()) / positive if positive > 0 else 0.0
    return Prediction(count, total, share, z, 0.5 * (1 + erf(z / sqrt(2))))


def random_rows(size: int, rows: Sequence[int], key: str) -> list[int]:
    """As many rows as there are, drawn from the others; from all where too few others are left."""
    others = np.setdiff1d(np.arange(size), np.array(rows, dtype=int))
    pool = others if len(others) >= len(rows) else np.arange(size)
    return sorted(keyed_generator("what if", 0, key).permutation(pool)[: len(rows)].tolist())
