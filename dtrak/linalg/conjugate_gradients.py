"""``(ΦᵀΦ + λI)⁻¹ φ`` for all λ at once where no Gram matrix fits in memory: multi-shift conjugate gradients.

One Krylov space serves every shift, for ΦᵀΦ + λI has the same space as ΦᵀΦ and the residuals of all shifts
stay parallel to that of the smallest (Jegerlehner, 1996, hep-lat/9612014). An iteration costs one pass over
Φ, for all queries and all λ together; nothing but a block of rows is ever cast to float64.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64

from dtrak.linalg.kernel import LARGE, Kernel, blocks, multiply, transposed_products
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator
from dtrak.utils.text import parse_size

TOLERANCE = 1e-8  # of a residual, relative to the right-hand side
MOST = 3000  # passes over Φ
PROBES = 64


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found.

    Attributes:
        vectors: a row a query for each λ.
        residuals: ‖(ΦᵀΦ + λI) x − b‖ / ‖b‖, as the recurrences have it.
        passes: over Φ.
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
        tolerance: of the residual, relative to ‖b‖; iteration ends when every system is below it.

    Raises:
        DtrakError: some system is not there after ``most`` passes.
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
                f"After {most} passes over the features λ = {base:.3g} is solved to {residuals.max():.1e} only.",
                hint="Choose a larger damping: small ones need many passes and say little.",
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
    """ΦᵀΦ v for every row v, a block of Φ's rows at a time."""
    total = np.zeros_like(vectors)
    for block in blocks(features):
        total += (vectors @ block.T) @ block
    return total


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=b != 0)


class KrylovKernel:
    """The kernel of features too many for a decomposition; the same questions as :class:`dtrak.linalg.kernel.Kernel`.

    Row norms and leverages are estimates: means over ``PROBES`` random directions, with a relative standard
    error of about 1/√(2·64) = 9 % of a norm.
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
        """``(ΦᵀΦ + λI)⁻¹ φ`` for relative λ."""
        return solve(self._features, queries, [self._absolute(d) for d in dampings]).vectors

    def scores(
        self, features: Float[np.ndarray, "n k"], query: Float[np.ndarray, " k"], damping: float
    ) -> Float64[np.ndarray, " n"]:
        """``Φ (ΦᵀΦ + λI)⁻¹ φ``."""
        return multiply(self._features, self.precondition(features, query, damping))

    def precondition(
        self, features: Float[np.ndarray, "n k"], query: Float[np.ndarray, " k"], damping: float
    ) -> Float64[np.ndarray, " k"]:
        """``(ΦᵀΦ + λI)⁻¹ φ``, to search an index of raw rows with."""
        return self.solve(query[None], [damping])[0, 0]

    def influence_norms(self, features: Float[np.ndarray, "n k"], damping: float) -> Float64[np.ndarray, " n"]:
        """‖(ΦᵀΦ + λI)⁻¹ φₙ‖₂, estimated: for random z, E (φₙᵀ M z)² = ‖M φₙ‖²."""
        return np.sqrt(self._probe(damping)[0])

    def leverages(self, features: Float[np.ndarray, "n k"], damping: float) -> Float64[np.ndarray, " n"]:
        """φₙᵀ M φₙ = ‖Φ M φₙ‖² + λ ‖M φₙ‖², both estimated; in [0, 1)."""
        norms, images = self._probe(damping)
        return np.minimum(images + self._absolute(damping) * norms, 1 - 1e-9)

    @property
    def auto_damping(self) -> float:
        """Not known without the spectrum.

        Raises:
            DtrakError: always.
        """
        raise DtrakError("λ = auto needs the whole spectrum, which is too large here.", hint="Give λ as a number.")

    def _probe(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """‖M φₙ‖² and ‖Φ M φₙ‖² of every row, estimated from the same number of directions each."""
        found = self._probed.get(damping)
        if found is None:
            rows, columns = self._features.shape
            random = keyed_generator("probe", 0, "")
            flat = random.standard_normal((PROBES, columns))
            of_rows = transposed_products(self._features, random.standard_normal((PROBES, rows)))
            solved = self.solve(np.concatenate([flat, of_rows]), [damping])[0]
            squares = _products(self._features, solved) ** 2
            found = squares[:PROBES].mean(0), squares[PROBES:].mean(0)
            self._probed = {damping: found}  # the latest alone; another thread may have set its own
        return found

    def _absolute(self, damping: float) -> float:
        if not damping > 0:
            raise ValueError(f"damping must be positive, not {damping}")
        return damping * (self.mean_eigenvalue or 1.0)


def kernel_of(features: Float[np.ndarray, "n k"]) -> Kernel | KrylovKernel:
    """The kernel of features by the road that :func:`fits` chooses."""
    return Kernel.decompose(features) if fits(*features.shape) else KrylovKernel(features)


def fits(rows: int, columns: int) -> bool:
    """Whether the smaller Gram matrix can be decomposed in the memory allowed (``DTRAK_MEMORY``, default 4 GB).

    It takes about three matrices of that size in float64.
    """
    return 3 * 8 * min(rows, columns) ** 2 <= memory_allowed()


def road(rows: int, columns: int) -> str:
    """In words, how the kernel of that many rows and columns is handled, and why."""
    smaller, allowed = min(rows, columns), memory_allowed()
    needed = f"{3 * 8 * smaller**2 / 1e9:.2g} GB of {allowed / 1e9:.2g} GB allowed (DTRAK_MEMORY)"
    if fits(rows, columns):
        return f"Kernel: eigendecomposition of the smaller Gram matrix, {smaller:,} a side; it takes {needed}."
    return f"Kernel: conjugate gradients at each query, for a decomposition of {smaller:,} a side would take {needed}."


def memory_allowed() -> float:
    """``DTRAK_MEMORY`` in bytes: a number, or one with GB, MB or others; 4 GB unless it is set."""
    return parse_size(os.environ.get("DTRAK_MEMORY", "4GB"), "DTRAK_MEMORY")


def _products(features: Float[np.ndarray, "n k"], vectors: Float64[np.ndarray, "q k"]) -> Float64[np.ndarray, "q n"]:
    return np.concatenate([vectors @ block.T for block in blocks(features, LARGE)], axis=1)
