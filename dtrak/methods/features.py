"""Ranking with your own features, given as plain arrays."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from dtrak.methods.base import Normaliser
from dtrak.methods.readout import Readout


class Features:
    """Φ, one row per training sample.

    Args:
        values: projected gradients, or any features whose inner products are scores.
        ids: ids of the samples; default the row numbers.

    Raises:
        ValueError: the shapes do not match, or a value is not finite.
    """

    def __init__(self, values: Float[np.ndarray, "n k"], ids: Sequence[str] | None = None):
        values = np.asarray(values)
        values = np.ascontiguousarray(values, dtype=np.float64 if values.dtype == np.float64 else np.float32)
        if values.ndim != 2 or not np.isfinite(values).all():
            raise ValueError(f"features must be a finite array of shape (n, k); got shape {values.shape}")
        self.values = values
        self.ids = [str(row) for row in range(len(values))] if ids is None else list(ids)
        if len(self.ids) != len(values):
            raise ValueError(f"got {len(self.ids)} ids for {len(values)} rows")
        self._readout = Readout(values)

    def scores(
        self,
        queries: Float[np.ndarray, "*q k"],
        damping: float | None = None,
        normaliser: Normaliser = "none",
    ) -> Float64[np.ndarray, "*q n"]:
        """φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φₙ for each query; without damping φ(x)ᵀ φₙ.

        Args:
            damping: λ relative to the mean non-zero eigenvalue of ΦᵀΦ.
            normaliser: the divisor of each row's score; see :class:`dtrak.methods.base.Method`.

        Raises:
            ValueError: the queries have another dimension than the features.
        """
        queries = np.asarray(queries)
        if queries.shape[-1] != self.values.shape[1]:
            raise ValueError(f"queries have {queries.shape[-1]} columns, features have {self.values.shape[1]}")
        rows = [self._readout.scores(row, damping, normaliser) for row in np.atleast_2d(queries)]
        return np.stack(rows).reshape(*queries.shape[:-1], len(self.values))

    def rank(
        self,
        query: Float[np.ndarray, " k"],
        damping: float | None = None,
        top: int = 10,
        normaliser: Normaliser = "none",
    ) -> list[tuple[str, float]]:
        """The ``top`` highest-scoring samples, each an id and its score."""
        scores = self.scores(query, damping, normaliser)
        return [(self.ids[row], float(scores[row])) for row in np.argsort(-scores, kind="stable")[:top]]

    def self_influence(self, damping: float) -> Float64[np.ndarray, " n"]:
        """φₙᵀ (ΦᵀΦ + λI)⁻¹ φₙ for every row, in [0, 1)."""
        return self._readout.kernel.leverages(self.values, damping)
