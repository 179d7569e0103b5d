"""The kernel ``(ΦᵀΦ + λI)⁻¹`` for every λ, from one float64 eigendecomposition.

The smaller of ΦᵀΦ (k×k) and ΦΦᵀ (N×N) is decomposed once. For k > N, with ``ΦΦᵀ = U S Uᵀ``,

    τ(x) = Φ (ΦᵀΦ + λI)⁻¹ φ(x) = U (S + λ)⁻¹ Uᵀ Φ φ(x).

λ is given relative to the mean non-zero eigenvalue, trace / min(N, k), so that one default
carries from data set to data set.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import eigh
from scipy.optimize import brentq

BLOCK = 2**20  # elements cast to float64 at a time, few enough for the processor's cache
LARGE = 2**23  # the same for matrix products, which need larger blocks


@dataclass(frozen=True)
class Kernel:
    """The eigendecomposition of the smaller Gram matrix.

    Attributes:
        eigenvalues: ascending, clipped at 0, [m] with m = min(N, k).
        eigenvectors: in columns, [m, m].
        dual: True for ΦΦᵀ (N ≤ k), False for ΦᵀΦ.
    """

    eigenvalues: Float64[np.ndarray, " m"]
    eigenvectors: Float64[np.ndarray, "m m"]
    dual: bool

    @classmethod
    def decompose(cls, features: Float[np.ndarray, "n k"], known: Float64[np.ndarray, "m m"] | None = None) -> "Kernel":
        """Decompose the smaller Gram matrix of ``features``, in float64.

        Args:
            known: that matrix, if already computed.
        """
        dual = features.shape[0] <= features.shape[1]
        matrix = gram(features) if known is None else known
        values, vectors = eigh(matrix, driver="evd", check_finite=False)
        return cls(np.maximum(values, 0), vectors, dual)

    @property
    def mean_eigenvalue(self) -> float:
        """trace / min(N, k): the unit of relative damping."""
        return float(self.eigenvalues.mean())

    def scores(
        self, features: Float[np.ndarray, "n k"], query: Float[np.ndarray, " k"], damping: float
    ) -> Float64[np.ndarray, " n"]:
        """``Φ (ΦᵀΦ + λI)⁻¹ φ`` in float64, with λ = damping · mean eigenvalue.

        Raises:
            ValueError: damping is not positive.
        """
        inverse = 1 / (self.eigenvalues + self.absolute(damping))
        if self.dual:
            return self.eigenvectors @ (inverse * (self.eigenvectors.T @ multiply(features, query)))
        return multiply(features, self.eigenvectors @ (inverse * (self.eigenvectors.T @ query.astype(np.float64))))

    def precondition(
        self, features: Float[np.ndarray, "n k"], query: Float[np.ndarray, " k"], damping: float
    ) -> Float64[np.ndarray, " k"]:
        """The query q for an index of raw rows, with ``Φ q = Φ (ΦᵀΦ + λI)⁻¹ φ`` and minimum norm.

        In the dual case the component of φ outside the span of the rows is dropped: it does not affect scores and
        would only cost precision in the index's float32.
        """
        damping = self.absolute(damping)
        if not self.dual:
            inverse = 1 / (self.eigenvalues + damping)
            return self.eigenvectors @ (inverse * (self.eigenvectors.T @ query.astype(np.float64)))
        kept = self.eigenvalues > self.eigenvalues[-1] * len(self.eigenvalues) * np.finfo(np.float64).eps
        values, vectors = self.eigenvalues[kept], self.eigenvectors[:, kept]
        weights = vectors @ ((vectors.T @ multiply(features, query)) / (values * (values + damping)))
        return transposed_products(features, weights[None])[0]

    def influence_norms(self, features: Float[np.ndarray, "n k"], damping: float) -> Float64[np.ndarray, " n"]:
        """‖(ΦᵀΦ + λI)⁻¹ φ_n‖₂ for every row: the diagonal of (G+λ)⁻¹ G (G+λ)⁻¹ with G = ΦΦᵀ, rooted."""
        inverse = 1 / (self.eigenvalues + self.absolute(damping))
        if self.dual:
            return np.sqrt(self.eigenvectors**2 @ (self.eigenvalues * inverse**2))
        norms = [np.linalg.norm((b @ self.eigenvectors) * inverse, axis=1) for b in blocks(features, LARGE)]
        return np.concatenate(norms)

    def leverages(self, features: Float[np.ndarray, "n k"], damping: float) -> Float64[np.ndarray, " n"]:
        """φₙᵀ (ΦᵀΦ + λI)⁻¹ φₙ for every row, in [0, 1)."""
        inverse = 1 / (self.eigenvalues + self.absolute(damping))
        if self.dual:
            return self.eigenvectors**2 @ (self.eigenvalues * inverse)
        return np.concatenate([((b @ self.eigenvectors) ** 2) @ inverse for b in blocks(features, LARGE)])

    @property
    def auto_damping(self) -> float:
        """The relative λ for which the effective number of directions is half the rank: Σ s/(s+λ) = rank/2."""
        values = self.eigenvalues[self.eigenvalues > self.eigenvalues[-1] * 1e-12]
        if not values.size:
            return 1.0

        def too_many(log_damping: float) -> float:
            return float((values / (values + np.exp(log_damping))).sum() - len(values) / 2)

        found = brentq(too_many, np.log(values[0] * 1e-3), np.log(values[-1] * 1e3), xtol=1e-12)
        return float(np.exp(found) / self.mean_eigenvalue)

    def absolute(self, damping: float) -> float:
        """The absolute λ for a relative damping.

        Raises:
            ValueError: damping is not positive.
        """
        if not damping > 0:
            raise ValueError(f"damping must be positive, not {damping}")
        return damping * (self.mean_eigenvalue or 1.0)


def gram(features: Float[np.ndarray, "n k"]) -> Float64[np.ndarray, "m m"]:
    """The smaller of ΦΦᵀ and ΦᵀΦ in float64, summed block by block, as Φ may be memory-mapped."""
    rows, columns = features.shape
    result = np.zeros((min(rows, columns),) * 2)
    if rows > columns:
        for block in blocks(features, LARGE):
            result += block.T @ block
    else:
        width = max(1, LARGE // rows)
        for start in range(0, columns, width):
            block = features[:, start : start + width].astype(np.float64)
            result += block @ block.T
    return result


def multiply(matrix: Float[np.ndarray, "n k"], vector: Float[np.ndarray, " k"]) -> Float64[np.ndarray, " n"]:
    """``matrix @ vector`` in float64, without a float64 copy of the matrix.

    Raises:
        ValueError: the shapes do not match.
    """
    if matrix.shape[1:] != vector.shape:
        raise ValueError(f"cannot multiply shapes {matrix.shape} and {vector.shape}")
    vector = np.ascontiguousarray(vector, dtype=np.float64)
    if matrix.dtype == np.float32 and matrix.flags.c_contiguous:
        result = np.empty(len(matrix))
        _compiled_products()(matrix, vector, result)
        return result
    return np.concatenate([block @ vector for block in blocks(matrix)])


def _products(matrix: Any, vector: Any, result: Any) -> None:
    for row in range(len(matrix)):
        numbers, total = matrix[row], 0.0
        for i in range(len(vector)):
            total += numbers[i] * vector[i]
        result[row] = total


@functools.cache
def _compiled_products() -> Callable[..., None]:
    import numba  # slow to import

    return numba.njit(_products, nogil=True, cache=True, fastmath={"reassoc", "contract"})  # as BLAS may


def transposed_products(
    features: Float[np.ndarray, "n k"], vectors: Float64[np.ndarray, "q n"]
) -> Float64[np.ndarray, "q k"]:
    """``vectors @ Φ`` in float64, block by block."""
    total = np.zeros((len(vectors), features.shape[1]))
    for part in row_slices(features.shape, LARGE):
        total += vectors[:, part] @ features[part].astype(np.float64)
    return total


def row_norms(features: Float[np.ndarray, "n k"]) -> Float64[np.ndarray, " n"]:
    """‖φₙ‖ of every row."""
    return np.concatenate([np.linalg.norm(block, axis=1) for block in blocks(features)])


def blocks(features: Float[np.ndarray, "n k"], numbers: int = BLOCK) -> Iterator[Float64[np.ndarray, "b k"]]:
    """Blocks of rows of Φ in float64, with about ``numbers`` elements each."""
    for part in row_slices(features.shape, numbers):
        yield features[part].astype(np.float64)


def row_slices(shape: tuple[int, int], numbers: int = BLOCK) -> Iterator[slice]:
    """Slices of rows of a matrix with about ``numbers`` elements each."""
    size = max(1, numbers // max(1, shape[1]))
    for start in range(0, shape[0], size):
        yield slice(start, min(start + size, shape[0]))
