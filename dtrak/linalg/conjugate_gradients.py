"""``(ΦᵀΦ + λI)⁻¹ φ`` for several λ without a Gram matrix, by multi-shift conjugate gradients.

One Krylov space serves every shift: ΦᵀΦ + λI generates the same space as ΦᵀΦ, and the residuals of all shifts
remain parallel to that of the smallest (Jegerlehner, 1996, hep-lat/9612014). Each iteration takes one pass over
Φ for all queries and all λ; Φ is cast to float64 block by block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64

from dtrak.config.environment import environment
from dtrak.linalg.kernel import LARGE, Kernel, blocks, multiply, transposed_products
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator

TOLERANCE = 1e-8  # residual norm relative to the right-hand side
MOST = 3000  # passes over Φ, at most
PROBES = 64  # random directions of an estimate


@dataclass(frozen=True)
class Solution:
    """The result of :func:`solve`.

    Attributes:
        vectors: the solution of each query for each λ.
        residuals: ‖(ΦᵀΦ + λI) x − b‖ / ‖b‖, by the recurrences.
        passes: number of passes over Φ.
    """

    vectors: Float64[np.ndarray, "l q k"]
    residuals: Float64[np.ndarray, "l q"]
    passes: int


def solve(
    features: Float[np.ndarray, "n k"],
    right: Float[np.ndarray, "q k"],
    shifts: Sequence[float],
    tolerance: float = TOLERANCE,
    most: int = MOST,
) -> Solution:
    """Solve ``(ΦᵀΦ + λI) x = b`` for several b and every λ of ``shifts``, in float64.

    Args:
        shifts: absolute λ, all positive.
        tolerance: required residual norm relative to ‖b‖, for all systems.
        most: maximum number of passes over Φ.

    Raises:
        DtrakError: some system has not converged after ``most`` passes.
    """
    absolute = np.array(shifts, dtype=np.float64)
    base = float(absolute.min())
    delta = (absolute - base)[:, None]
    b = np.atleast_2d(right).astype(np.float64)
    size = np.linalg.norm(b, axis=1)
    x = np.zeros((len(absolute), *b.shape))
    p = np.broadcast_to(b, x.shape).copy()
    seed, r = b.copy(), b.copy()
    zeta, zeta_before = np.ones((len(absolute), len(b))), np.ones((len(absolute), len(b)))
    alpha_before, beta_before = np.ones(len(b)), np.zeros(len(b))
    square = np.einsum("qk,qk->q", r, r)
    residuals = np.where(size > 0, 1.0, 0.0) * np.ones_like(zeta)
    passes = 0
    while (residuals > tolerance).any():
        if passes == most:
            raise DtrakError(
                f"No convergence for λ = {base:.3g} after {most} passes over the features: the relative residual is "
                f"{residuals.max():.1e}.",
                hint="Choose a larger damping.",
            )
        passes += 1
        product = normal_product(features, seed) + base * seed
        alpha = _ratio(square, np.einsum("qk,qk->q", seed, product))
        r -= alpha[:, None] * product
        square_now = np.einsum("qk,qk->q", r, r)
        beta = _ratio(square_now, square)
        bottom = alpha_before * zeta_before * (1 + alpha * delta) + alpha * beta_before * (zeta_before - zeta)
        zeta_now = _ratio(zeta * zeta_before * alpha_before, bottom)
        step = _ratio(zeta_now, zeta)
        x += (alpha * step)[..., None] * p
        p *= (beta * step**2)[..., None]
        p += zeta_now[..., None] * r
        seed = r + beta[:, None] * seed
        residuals = np.abs(zeta_now) * _ratio(np.sqrt(square_now), size)
        zeta_before, zeta, alpha_before, beta_before, square = zeta, zeta_now, alpha, beta, square_now
    return Solution(x, residuals, passes)


def normal_product(
    features: Float[np.ndarray, "n k"], vectors: Float64[np.ndarray, "q k"]
) -> Float64[np.ndarray, "q k"]:
    """ΦᵀΦ v for every row v of ``vectors``, block by block."""
    total = np.zeros_like(vectors)
    for block in blocks(features):
        total += (vectors @ block.T) @ block
    return total


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=b != 0)


class KrylovKernel:
    """The kernel of features that are too large to decompose; the interface of :class:`dtrak.linalg.kernel.Kernel`.

    Row norms and leverages are estimates: means over ``PROBES`` random directions, with a relative standard
    error of a norm of about 1/√(2·64) = 9 %.
    """

    def __init__(self, features: Float[np.ndarray, "n k"]):
        self._features = features
        self._probed: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def mean_eigenvalue(self) -> float:
        """trace / min(N, k): the unit of relative damping."""
        rows = self._features
        return float(sum(np.einsum("nk,nk->", b, b) for b in blocks(rows)) / min(rows.shape))

    def solve(
        self, queries: Float[np.ndarray, "q k"], dampings: Float64[np.ndarray, " l"] | Sequence[float]
    ) -> Float64[np.ndarray, "l q k"]:
        """``(ΦᵀΦ + λI)⁻¹ φ`` for relative λ.

        Raises:
            ValueError: a damping is not positive.
            DtrakError: no convergence.
        """
        return solve(self._features, queries, [self._absolute(d) for d in dampings]).vectors

    def scores(
        self, features: Float[np.ndarray, "n k"], query: Float[np.ndarray, " k"], damping: float
    ) -> Float64[np.ndarray, " n"]:
        """``Φ (ΦᵀΦ + λI)⁻¹ φ``."""
        return multiply(self._features, self.precondition(features, query, damping))

    def precondition(
        self, features: Float[np.ndarray, "n k"], query: Float[np.ndarray, " k"], damping: float
    ) -> Float64[np.ndarray, " k"]:
        """The query q = ``(ΦᵀΦ + λI)⁻¹ φ`` for an index of raw rows."""
        return self.solve(query[None], [damping])[0, 0]

    def influence_norms(self, features: Float[np.ndarray, "n k"], damping: float) -> Float64[np.ndarray, " n"]:
        """‖M φₙ‖₂ with M = (ΦᵀΦ + λI)⁻¹, estimated: for standard normal z, E (φₙᵀ M z)² = ‖M φₙ‖²."""
        return np.sqrt(self._probe(damping)[0])

    def leverages(self, features: Float[np.ndarray, "n k"], damping: float) -> Float64[np.ndarray, " n"]:
        """φₙᵀ M φₙ = ‖Φ M φₙ‖² + λ ‖M φₙ‖², both estimated; in [0, 1)."""
        norms, images = self._probe(damping)
        return np.minimum(images + self._absolute(damping) * norms, 1 - 1e-9)

    @property
    def auto_damping(self) -> float:
        """Not available without the spectrum.

        Raises:
            DtrakError: always.
        """
        raise DtrakError(
            "λ = auto needs an eigendecomposition, which does not fit in memory.",
            hint="Set λ to a number, or increase DTRAK_MEMORY.",
        )

    def _probe(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """Estimates of ‖M φₙ‖² and ‖Φ M φₙ‖² of every row."""
        found = self._probed.get(damping)
        if found is None:
            rows, columns = self._features.shape
            random = keyed_generator("probe", 0, "")
            flat = random.standard_normal((PROBES, columns))
            of_rows = transposed_products(self._features, random.standard_normal((PROBES, rows)))
            solved = self.solve(np.concatenate([flat, of_rows]), [damping])[0]
            squares = _products(self._features, solved) ** 2
            found = squares[:PROBES].mean(0), squares[PROBES:].mean(0)
            self._probed = {damping: found}  # keep only the latest; another thread may have set its own
        return found

    def _absolute(self, damping: float) -> float:
        if not damping > 0:
            raise ValueError(f"damping must be positive, not {damping}")
        return damping * (self.mean_eigenvalue or 1.0)


def kernel_of(features: Float[np.ndarray, "n k"]) -> Kernel | KrylovKernel:
    """The kernel of features: an eigendecomposition if it :func:`fits` in memory, else conjugate gradients."""
    return Kernel.decompose(features) if fits(*features.shape) else KrylovKernel(features)


def fits(rows: int, columns: int) -> bool:
    """Whether decomposing the smaller Gram matrix fits in ``DTRAK_MEMORY`` (default 4 GB).

    It needs about three matrices of that size in float64.
    """
    return 3 * 8 * min(rows, columns) ** 2 <= memory_allowed()


def solver_choice(rows: int, columns: int) -> str:
    """A sentence that says how the kernel of Φ of this size is computed, and why."""
    smaller, allowed = min(rows, columns), memory_allowed()
    size, limit = f"{smaller:,} × {smaller:,}", f"limit {allowed / 1e9:.2g} GB (DTRAK_MEMORY)"
    needed = f"{3 * 8 * smaller**2 / 1e9:.2g} GB"
    if fits(rows, columns):
        return f"Kernel: eigendecomposition of the {size} Gram matrix; needs {needed}, {limit}."
    return f"Kernel: conjugate gradients for each query; an eigendecomposition ({size}) would need {needed}, {limit}."


def memory_allowed() -> float:
    """``DTRAK_MEMORY`` in bytes; default 4 GB.

    Raises:
        DtrakError: its value is not a size.
    """
    return float(environment().memory)


def _products(features: Float[np.ndarray, "n k"], vectors: Float64[np.ndarray, "q k"]) -> Float64[np.ndarray, "q n"]:
    return np.concatenate([vectors @ block.T for block in blocks(features, LARGE)], axis=1)
