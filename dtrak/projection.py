"""Random projections P: R^D → R^k that keep inner products, ``E⟨Px, Py⟩ = ⟨x, y⟩``.

``SparseProjector`` (default) adds each coordinate, with a random sign, to one of k buckets: a
count sketch (Charikar, Chen & Farach-Colton, 2002). Its hash works in blocks of k coordinates,
each shifted round by a random amount, so that projecting is a few long additions and D signs
are all that is stored. ``DenseProjector`` draws a full matrix (normal or Rademacher entries,
scaled by 1/√k, as in TRAK); it is the slow reference that tests and benchmarks compare with.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dtrak.config import ProjectionKind
from dtrak.noise import keyed_generator

PROJECTION_VERSION = 1  # part of every fingerprint: raise it whenever the matrices below change

CHUNK = 2**16  # coordinates that are given their signs at a time; they stay in the cache


class Projector(Protocol):
    """Maps vectors of ``input_dim`` numbers to ``output_dim`` numbers."""

    input_dim: int
    output_dim: int

    def __call__(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]: ...


class SparseProjector:
    """Coordinate j goes, with sign s_j, to bucket ``(j + r_⌊j/k⌋) mod k``.

    Signs and shifts come from Philox streams keyed by the seed. Two coordinates of different
    blocks meet with probability 1/k, two of one block never; signs are independent. Hence inner
    products are unbiased with variance at most ``(‖x‖²‖y‖² + ⟨x,y⟩²) / k``.
    """

    def __init__(self, input_dim: int, output_dim: int, seed: int, device: torch.device | str = "cpu"):
        self.input_dim, self.output_dim = input_dim, output_dim
        blocks = -(-input_dim // output_dim)
        bits = np.frombuffer(keyed_generator("sign", seed, "").bytes(-(-input_dim // 8)), np.uint8)
        signs = np.unpackbits(bits, count=input_dim).astype(np.int8) * 2 - 1
        self._signs = torch.from_numpy(signs).to(device)
        self._shifts: list[int] = keyed_generator("shift", seed, "").integers(0, output_dim, blocks).tolist()

    def __call__(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Project the rows of ``vectors``; float64 stays float64."""
        k = self.output_dim
        ring = vectors.new_zeros(len(vectors), 2 * k)  # a shifted block wraps at most once
        if vectors.device.type == "cpu":
            self._add(vectors.detach().numpy(), self._signs.numpy(), ring.numpy())
        else:
            self._add(vectors, self._signs, ring)
        return ring[:, :k] + ring[:, k:]

    def _add(self, vectors: Any, signs: Any, ring: Any) -> None:
        """Add every block to the ring, in order; NumPy's calls cost a quarter of torch's, and there are many."""
        k = self.output_dim
        width = k * max(1, CHUNK // k)
        for start in range(0, self.input_dim, width):
            chunk = vectors[:, start : start + width] * signs[start : start + width]
            for number, shift in enumerate(self._shifts[start // k : (start + width) // k]):
                block = chunk[:, number * k : (number + 1) * k]
                ring[:, shift : shift + block.shape[1]] += block


class DenseProjector:
    """``P = R/√k`` with independent entries of mean 0 and variance 1, drawn column by column.

    Rows of ``R`` are never held at once: blocks of input coordinates are drawn when needed, so
    memory stays at ``block · k`` numbers and time at D·k. For reference, not for use.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        seed: int,
        kind: Literal["normal", "rademacher"] = "normal",
        block: int = 1024,
    ):
        self.input_dim, self.output_dim = input_dim, output_dim
        self._seed, self._kind, self._block = seed, kind, block

    def matrix_blocks(self) -> Iterator[Float[np.ndarray, "block k"]]:
        """The unscaled matrix Rᵀ, ``block`` rows at a time."""
        for start in range(0, self.input_dim, self._block):
            shape = (min(self._block, self.input_dim - start), self.output_dim)
            generator = keyed_generator(self._kind, self._seed, "", start)
            if self._kind == "normal":
                yield generator.standard_normal(shape, np.float32)
            else:
                yield (generator.integers(0, 2, shape, np.int8) * 2 - 1).astype(np.float32)

    def __call__(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        result = vectors.new_zeros(len(vectors), self.output_dim)
        for index, block in enumerate(self.matrix_blocks()):
            start = index * self._block
            matrix = torch.from_numpy(block).to(vectors)
            result += vectors[:, start : start + len(block)] @ matrix
        return result / self.output_dim**0.5


def make_projector(
    kind: ProjectionKind, input_dim: int, output_dim: int, seed: int, device: torch.device | str = "cpu"
) -> Projector:
    """The projector of that kind; the same arguments give the same matrix on every machine."""
    if kind == "sparse":
        return SparseProjector(input_dim, output_dim, seed, device)
    return DenseProjector(input_dim, output_dim, seed, kind)
