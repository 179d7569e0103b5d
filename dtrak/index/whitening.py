"""Whitened coordinates, in which few coarsely quantised numbers per row still rank well under the kernel.

A search finds the rows with the largest ``φₙ·q``, with ``q = (ΦᵀΦ + λI)⁻¹ φ(x)``. Directions of small variance weigh
far more in q than in φₙ, but a quantiser of raw rows spends its bits on directions of large variance. With
``ΦᵀΦ = V S Vᵀ`` and a typical λ₀,

    φₙ·q = yₙ·p,    yₙ = (S + λ₀)^(−1/2) Vᵀ φₙ,    p = (S + λ₀)^(1/2) Vᵀ q,

both sides weigh directions equally, and those with ``s ≪ λ₀`` are negligible, so the first m suffice. λ remains free;
λ₀ only determines where the quantiser is most accurate.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from dtrak.linalg.conjugate_gradients import KrylovKernel
from dtrak.linalg.kernel import Kernel
from dtrak.utils.errors import DtrakError

TYPICAL = 0.316  # λ₀ relative to the mean eigenvalue: D-TRAK's default


def no_whitening(size: int) -> DtrakError:
    """The error for features that cannot be whitened."""
    return DtrakError(
        f"White{size} needs the eigendecomposition of ΦᵀΦ: more rows than columns, and at least {size} columns.",
        hint="Use another index_factory (Flat is exact), or increase DTRAK_MEMORY.",
    )


@dataclass(frozen=True)
class Whitening:
    """A change of coordinates.

    Attributes:
        rows: the matrix W in ``yₙ = φₙ W``.
        queries: the matrix in ``p = q @ queries``.
    """

    rows: Float32[np.ndarray, "k m"]
    queries: Float32[np.ndarray, "k m"]

    @classmethod
    def of(cls, kernel: Kernel | KrylovKernel, size: int) -> "Whitening":
        """The ``size`` leading directions of a kernel.

        Raises:
            DtrakError: the kernel is not a decomposition of ΦᵀΦ, or has fewer directions.
        """
        if not isinstance(kernel, Kernel) or kernel.dual or size > len(kernel.eigenvalues):
            raise no_whitening(size)
        scale = np.sqrt(kernel.eigenvalues[::-1][:size] + kernel.absolute(TYPICAL))
        vectors = kernel.eigenvectors[:, ::-1][:, :size]
        return cls((vectors / scale).astype(np.float32), (vectors * scale).astype(np.float32))

    def of_query(self, q: Float[np.ndarray, " k"]) -> Float32[np.ndarray, " m"]:
        """p for a query q."""
        return (q.astype(np.float64) @ self.queries).astype(np.float32)
