"""Coordinates in which few numbers a row, coarsely stored, still rank well under the kernel.

A search wants the rows with the largest ``φₙ·q``, and under the kernel ``q = (ΦᵀΦ + λI)⁻¹ φ(x)``: small directions of
Φ count far more in q than in φₙ. A quantiser of raw rows spends its bits on the large ones. With
``ΦᵀΦ = V S Vᵀ`` and a typical λ₀,

    φₙ·q = yₙ·p,    yₙ = (S + λ₀)^(−1/2) Vᵀ φₙ,    p = (S + λ₀)^(1/2) Vᵀ q,

both sides weigh directions alike, and those with ``s ≪ λ₀`` hardly count: the first m suffice. λ stays free; λ₀ only
says where the quantiser is at its best.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from dtrak.linalg.conjugate_gradients import KrylovKernel
from dtrak.linalg.kernel import Kernel
from dtrak.utils.errors import DtrakError

TYPICAL = 0.316  # λ₀ relative to the mean eigenvalue: D-TRAK's default


def no_whitening(size: int) -> DtrakError:
    """Said where there are no such coordinates."""
    return DtrakError(
        f"White{size} needs the decomposition of ΦᵀΦ, with at least {size} columns and more rows than columns.",
        hint="Use another index_factory (Flat is exact), or set DTRAK_MEMORY higher.",
    )


@dataclass(frozen=True)
class Whitening:
    """A change of coordinates.

    Attributes:
        rows: W of ``yₙ = φₙ W``.
        queries: of ``p = q @ queries``.
    """

    rows: Float32[np.ndarray, "k m"]
    queries: Float32[np.ndarray, "k m"]

    @classmethod
    def of(cls, kernel: Kernel | KrylovKernel, size: int) -> "Whitening":
        """The m leading directions of a kernel.

        Raises:
            DtrakError: the kernel is not of ΦᵀΦ, or has fewer directions.
        """
        if not isinstance(kernel, Kernel) or kernel.dual or size > len(kernel.eigenvalues):
            raise no_whitening(size)
        scale = np.sqrt(kernel.eigenvalues[::-1][:size] + kernel.absolute(TYPICAL))
        vectors = kernel.eigenvectors[:, ::-1][:, :size]
        return cls((vectors / scale).astype(np.float32), (vectors * scale).astype(np.float32))

    def of_query(self, q: Float[np.ndarray, " k"]) -> Float32[np.ndarray, " m"]:
        """p for a q."""
        return (q.astype(np.float64) @ self.queries).astype(np.float32)
