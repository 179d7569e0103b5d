"""Scores of one model's training features Φ for a query's feature: Φ (ΦᵀΦ + λI)⁻¹ φ(x)."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import cho_factor, cho_solve

from dtrak.linalg.conjugate_gradients import KrylovKernel, fits
from dtrak.linalg.kernel import LARGE, Kernel, blocks, gram, multiply, row_norms
from dtrak.methods.base import Normaliser
from dtrak.methods.settings import AUTO
from dtrak.utils.errors import DtrakError

NEAR_ONE = 1e-6  # lower bound of 1 − leverage


class Readout:
    """Φ with its kernel; the eigendecomposition is computed only when needed.

    Args:
        features: Φ.
        residuals: computes rₙ, which only DAS needs.
        kernel: the kernel of Φ, if already known.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "n k"],
        residuals: Callable[[], Float[np.ndarray, " n"]] | None = None,
        kernel: Kernel | KrylovKernel | None = None,
    ):
        self.features, self._residuals = features, residuals
        self._kernel = kernel
        self._halves: dict[int | None, Readout] = {}
        self._factors: dict[float, tuple[np.ndarray, bool]] = {}
        self._latest: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def kernel(self) -> Kernel | KrylovKernel:
        """The eigendecomposition, or an iterative solver if that does not fit in memory; either serves every λ."""
        if self._kernel is None:
            dense = fits(*self.features.shape)
            self._kernel = Kernel.decompose(self.features, self._gram) if dense else KrylovKernel(self.features)
        return self._kernel

    @cached_property
    def norms(self) -> Float64[np.ndarray, " n"]:
        """‖φₙ‖."""
        return row_norms(self.features)

    @cached_property
    def _gram(self) -> Float64[np.ndarray, "m m"]:
        return gram(self.features)

    @property
    def _dual(self) -> bool:
        return self.features.shape[0] <= self.features.shape[1]

    def half(self, columns: slice) -> "Readout":
        """The readout of some columns with its own kernel, cached by the first column."""
        if columns.start not in self._halves:
            self._halves[columns.start] = Readout(self.features[:, columns])
        return self._halves[columns.start]

    def damping(self, wanted: float | str | None) -> float | None:
        """The damping as a number; "auto" is resolved from the spectrum.

        Raises:
            DtrakError: "auto" needs the spectrum, and it does not fit in memory.
        """
        return self.kernel.auto_damping if wanted == AUTO else wanted  # type: ignore[return-value]

    def inner(self, queries: Float[np.ndarray, "*q k"], damping: float | None) -> Float64[np.ndarray, "*q n"]:
        """``Φ (ΦᵀΦ + λI)⁻¹ φ``, or ``Φ φ`` without damping, for one query or one per row.

        The first λ uses a Cholesky solve, about ten times cheaper than the eigendecomposition.
        """
        if damping is None:
            return self._products(queries)
        if not self._dual or (self._kernel is None and not fits(*self.features.shape)):
            return self._multiplied(self._preconditioned(queries, damping))
        if self._kernel is None:  # Φ (ΦᵀΦ + λ)⁻¹ φ = (ΦΦᵀ + λ)⁻¹ Φ φ
            return cho_solve(self._factor(damping), self._products(queries).T, check_finite=False).T
        found = self._solve(np.atleast_2d(queries), np.array([damping]))[0]
        return found.reshape(*queries.shape[:-1], len(self.features))

    def inner_of(
        self, rows: Sequence[int], queries: Float[np.ndarray, "q k"], damping: float | None
    ) -> Float64[np.ndarray, "q rows"]:
        """:meth:`inner` for some rows of Φ; if Φ has more rows than columns, only these rows are read."""
        chosen = np.array(rows, dtype=int)
        if self._dual:
            return self.inner(queries, damping)[:, chosen]
        seen = queries if damping is None else self._preconditioned(queries, damping)
        return seen @ self.features[chosen].astype(np.float64).T

    def _preconditioned(self, queries: Float[np.ndarray, "*q k"], damping: float) -> Float64[np.ndarray, "*q k"]:
        """``(ΦᵀΦ + λI)⁻¹ φ``, whose inner products with the rows of Φ are the scores."""
        wide = np.atleast_2d(queries).astype(np.float64)
        known = self._kernel if fits(*self.features.shape) else self.kernel
        if isinstance(known, KrylovKernel):
            found = known.solve(wide, [damping])[0]
        elif known is not None:
            inverse = 1 / (known.eigenvalues + known.absolute(damping))
            found = (wide @ known.eigenvectors * inverse) @ known.eigenvectors.T
        else:
            found = cho_solve(self._factor(damping), wide.T, check_finite=False).T
        return found.reshape(queries.shape)

    def scores(
        self,
        queries: Float[np.ndarray, "*q k"],
        damping: float | None = None,
        normaliser: Normaliser = "none",
        residual: bool = False,
    ) -> Float64[np.ndarray, "*q n"]:
        """The scores of all training samples, for one query or one per row; samples with φₙ = 0 score zero.

        Args:
            damping: λ relative to the mean non-zero eigenvalue; None for inner products.
            residual: apply DAS's residual and leverage terms.

        Raises:
            DtrakError: the normaliser or the residual term needs a damping, and there is none.
        """
        return self._finish(self.inner(queries, damping), queries, damping, normaliser, residual)

    def each(
        self,
        queries: Float[np.ndarray, "q k"],
        dampings: Sequence[float | None],
        normaliser: Normaliser = "none",
        residual: bool = False,
    ) -> list[Float64[np.ndarray, "q n"]]:
        """The scores of a batch of queries at each of several λ."""
        if len(dampings) == 1 or dampings[0] is None:
            inner = [self.inner(queries, damping) for damping in dampings]
        else:
            inner = list(self._solve(queries, np.array(dampings)))
        return [
            self._finish(row, queries, damping, normaliser, residual)
            for row, damping in zip(inner, dampings, strict=True)
        ]

    def _finish(
        self,
        scores: Float64[np.ndarray, "*q n"],
        queries: Float[np.ndarray, "*q k"],
        damping: float | None,
        normaliser: Normaliser,
        residual: bool,
    ) -> Float64[np.ndarray, "*q n"]:
        if residual:
            if damping is None or self._residuals is None:
                raise DtrakError("This method needs a damping λ and stored residuals.", hint="Set a damping.")
            leverages = self.kernel.leverages(self.features, damping)
            scores = (scores * self._residuals() / np.maximum(1 - leverages, NEAR_ONE)) ** 2
        if normaliser == "cosine":
            norms = np.linalg.norm(queries.astype(np.float64), axis=-1, keepdims=True)
            scores = scores / np.where(norms > 0, norms, 1.0)
        return scores / self.row_norms(damping, normaliser)

    def row_norms(self, damping: float | None, normaliser: Normaliser) -> Float64[np.ndarray, " n"]:
        """The divisor of each row's score, without the query's norm.

        Raises:
            DtrakError: the normaliser needs a kernel, and there is none.
        """
        if normaliser == "none":
            return np.ones(len(self.features))
        if normaliser == "influence":
            if damping is None:
                raise DtrakError("The normaliser 'influence' needs a kernel.", hint="Choose a method with damping.")
            norms = self.kernel.influence_norms(self.features, damping)
        else:
            norms = self.norms
        return np.where(norms > 0, norms, 1.0)

    def _products(self, queries: Float[np.ndarray, "*q k"]) -> Float64[np.ndarray, "*q n"]:
        """Φ φ; cached for the latest batch of queries, as it serves every λ."""
        latest = self._latest
        if queries.ndim > 1 and (latest is None or latest[0] is not queries):
            self._latest = latest = queries, self._multiplied(queries)
        return latest[1] if latest is not None and latest[0] is queries else self._multiplied(queries)

    def _multiplied(self, queries: Float[np.ndarray, "*q k"]) -> Float64[np.ndarray, "*q n"]:
        if queries.ndim == 1:
            return multiply(self.features, queries)
        wide = queries.astype(np.float64)
        return np.concatenate([wide @ block.T for block in blocks(self.features, LARGE)], axis=1)

    def sweep(
        self,
        query: Float[np.ndarray, " k"],
        dampings: Float64[np.ndarray, " l"],
        normaliser: Normaliser,
        residual: bool,
    ) -> Float64[np.ndarray, "l n"]:
        """The scores of one query at several λ, from one decomposition."""
        inner = self._solve(query[None], dampings)[:, 0]
        return np.stack(
            [self._finish(row, query, d, normaliser, residual) for row, d in zip(inner, dampings, strict=True)]
        )

    def _solve(
        self, queries: Float[np.ndarray, "q k"], dampings: Float64[np.ndarray, " l"]
    ) -> Float64[np.ndarray, "l q n"]:
        kernel = self.kernel
        if isinstance(kernel, KrylovKernel):
            return np.stack([self._multiplied(q) for q in kernel.solve(queries, dampings)])
        inverse = [1 / (kernel.eigenvalues + d * (kernel.mean_eigenvalue or 1.0)) for d in dampings.tolist()]
        seen = self._products(queries) if kernel.dual else queries.astype(np.float64)
        turned = seen @ kernel.eigenvectors
        found = [(turned * row) @ kernel.eigenvectors.T for row in inverse]
        return np.stack(found if kernel.dual else [self._multiplied(q) for q in found])

    def _factor(self, damping: float) -> tuple[np.ndarray, bool]:
        factor = self._factors.get(damping)
        if factor is None:
            matrix = self._gram.copy()
            unit = np.trace(matrix) / len(matrix)
            matrix[np.diag_indices_from(matrix)] += damping * (unit or 1.0)
            factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
            self._factors = {damping: factor}  # keep only the latest; another thread may have set its own
        return factor
