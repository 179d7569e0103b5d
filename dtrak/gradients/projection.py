"""Random projections P: R^D → R^k that preserve inner products in expectation, ``E⟨Px, Py⟩ = ⟨x, y⟩``.

``SparseProjector`` (default) adds each coordinate, with a random sign, to one of k buckets: a
count sketch (Charikar, Chen & Farach-Colton, 2002). Its hash shifts blocks of k coordinates
cyclically by random amounts, so that a projection reads the vector once, sequentially, and only the
D signs are stored. ``DenseProjector`` draws a full matrix (normal or Rademacher entries, scaled by
1/√k, as in TRAK); it is the slow reference for tests and benchmarks.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dtrak.config import ProjectionKind
from dtrak.utils.noise import keyed_generator

PROJECTION_VERSION = 1  # part of every fingerprint: raise it whenever the matrices below change


class Projector(ABC):
    """Maps vectors with ``input_dim`` coordinates to ``output_dim``, at once or piece by piece."""

    input_dim: int
    output_dim: int

    def __call__(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Project n vectors; the result is float64 for float64 input, else float32."""
        total = self.begin(len(vectors), vectors)
        self.add(total, vectors, 0)
        return self.result(total)

    @abstractmethod
    def begin(self, rows: int, like: Tensor) -> Tensor:
        """An empty accumulator for ``rows`` vectors, with type and device as ``like``."""

    @abstractmethod
    def add(self, total: Tensor, piece: Float[Tensor, "n *shape"], start: int) -> None:
        """Add a piece of each vector (such as the gradient of one parameter), in any order and any number of times.

        Args:
            total: from :meth:`begin`.
            piece: flattened in index order, with any memory layout.
            start: index of its first coordinate.

        Raises:
            ValueError: it exceeds ``input_dim`` coordinates, or has another number of vectors.
        """

    @abstractmethod
    def result(self, total: Tensor) -> Float[Tensor, "n k"]:
        """The projection of the accumulated vectors."""

    def _check(self, total: Tensor, piece: Tensor, start: int) -> None:
        if len(piece) != len(total):
            raise ValueError(f"cannot add a piece of {len(piece)} vectors to {len(total)}")
        stop = start + _size(piece)
        if not 0 <= start <= stop <= self.input_dim:
            raise ValueError(f"coordinates {start} to {stop} are out of range for input_dim {self.input_dim}")


class SparseProjector(Projector):
    """Coordinate j goes, with sign s_j, to bucket ``(j + r_⌊j/k⌋) mod k``.

    Signs and shifts come from Philox streams keyed by the seed. Two coordinates of different
    blocks collide with probability 1/k, two of the same block never; signs are independent. So
    inner products are unbiased, with variance at most ``(‖x‖²‖y‖² + ⟨x,y⟩²) / k``.
    """

    def __init__(self, input_dim: int, output_dim: int, seed: int, device: torch.device | str = "cpu"):
        self.input_dim, self.output_dim = input_dim, output_dim
        blocks = -(-input_dim // output_dim)
        bits = np.frombuffer(keyed_generator("sign", seed, "").bytes(-(-input_dim // 8)), np.uint8)
        signs = np.unpackbits(bits, count=input_dim).astype(np.int8) * 2 - 1
        self._signs, self._signs_here = torch.from_numpy(signs).to(device), signs
        self._shifts = keyed_generator("shift", seed, "").integers(0, output_dim, blocks)

    def begin(self, rows: int, like: Tensor) -> Tensor:
        """See :class:`Projector`; rows of 2k buckets, as a shifted block wraps around at most once."""
        return like.new_zeros(rows, 2 * self.output_dim, dtype=_wide(like))

    def add(self, total: Tensor, piece: Float[Tensor, "n *shape"], start: int) -> None:
        """See :class:`Projector`."""
        self._check(total, piece, start)
        if piece.dtype != total.dtype:
            piece = piece.to(total.dtype)
        if total.device.type == "cpu":
            _compiled_add()(total.numpy(), *_lines(piece), self._signs_here, self._shifts, start)
        else:
            _add(total, piece.flatten(1), self._signs, self._shifts, start)

    def result(self, total: Tensor) -> Float[Tensor, "n k"]:
        """See :class:`Projector`."""
        return total[:, : self.output_dim] + total[:, self.output_dim :]


def _add(ring: Tensor, values: Tensor, signs: Tensor, shifts: Int[np.ndarray, " blocks"], start: int) -> None:
    """Add coordinates to their buckets; ``start`` is the index of the first coordinate."""
    k, stop = ring.shape[1] // 2, start + values.shape[1]
    signed = values * signs[start:stop]
    for block in range(start // k, -(-stop // k)):
        low, high = max(start, block * k), min(stop, (block + 1) * k)
        bucket = int(shifts[block]) + low - block * k
        ring[:, bucket : bucket + high - low] += signed[:, low - start : high - start]


Lines = tuple[Float[np.ndarray, " numbers"], tuple[int, ...], tuple[int, ...]]


def _lines(piece: Tensor) -> Lines:
    """A piece in its memory order: the flat array, its shape (rows, tiles, height, width), and the first three strides.

    In index order, a row is the concatenation of its transposed tiles. A channels-last gradient of a convolution has
    one tile per output channel; anything else is a single tile of height 1.
    """
    rows, size, steps = len(piece), _size(piece), piece.stride()
    if piece.is_contiguous():
        return piece.numpy().reshape(-1), (rows, 1, 1, size), (size, 0, 0)
    if piece.ndim == 5 and steps[2] == 1 and steps[3] == piece.shape[4] * steps[4]:
        shape = (rows, piece.shape[1], piece.shape[3] * piece.shape[4], piece.shape[2])
        steps = (steps[0], steps[1], steps[4])
    else:
        if not piece[0].is_contiguous():
            piece = piece.contiguous()
        shape, steps = (rows, 1, 1, size), (piece.stride(0), 0, 0)
    length = sum((count - 1) * step for count, step in zip(shape, (*steps, 1), strict=True)) + 1
    return piece.as_strided((length,), (1,)).numpy(), shape, steps


def _size(piece: Tensor) -> int:
    return piece.numel() // max(1, len(piece))


def _add_lines(ring: Any, numbers: Any, shape: Any, steps: Any, signs: Any, shifts: Any, start: int) -> None:
    """:func:`_add` for numba: each element is read once, and only the ring is written."""
    rows, tiles, height, width = shape
    k, size = ring.shape[1] // 2, height * width
    turned = np.empty(size if height > 1 else 0, numbers.dtype)
    for row in range(rows):
        for tile in range(tiles):
            corner = row * steps[0] + tile * steps[1]
            value = numbers[corner : corner + width]
            if height > 1:
                for i in range(height):
                    line = numbers[corner + i * steps[2] : corner + i * steps[2] + width]
                    for j in range(width):
                        turned[j * height + i] = line[j]
                value = turned
            first = start + tile * size
            for block in range(first // k, -(-(first + size) // k)):
                low, high = max(first, block * k), min(first + size, (block + 1) * k)
                bucket = shifts[block] + low - block * k
                total, sign = ring[row, bucket : bucket + high - low], signs[low:high]
                added = value[low - first : high - first]
                for i in range(high - low):
                    total[i] += sign[i] * added[i]


@functools.cache
def _compiled_add() -> Callable[..., None]:
    import numba  # slow to import

    return numba.njit(_add_lines, nogil=True, cache=True)


def _wide(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


class DenseProjector(Projector):
    """``P = R/√k`` with independent entries of mean 0 and variance 1; a slow reference, with time O(D·k).

    ``R`` is drawn in blocks of input coordinates as needed, so memory is that of the vectors and of
    ``block · k`` numbers.
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

    def begin(self, rows: int, like: Tensor) -> Tensor:
        """See :class:`Projector`; accumulates the unprojected vectors."""
        return like.new_zeros(rows, self.input_dim, dtype=_wide(like))

    def add(self, total: Tensor, piece: Float[Tensor, "n *shape"], start: int) -> None:
        """See :class:`Projector`."""
        self._check(total, piece, start)
        total[:, start : start + _size(piece)] += piece.flatten(1)

    def result(self, total: Tensor) -> Float[Tensor, "n k"]:
        """See :class:`Projector`."""
        found = total.new_zeros(len(total), self.output_dim)
        for index, block in enumerate(self.matrix_blocks()):
            start = index * self._block
            found += total[:, start : start + len(block)] @ torch.from_numpy(block).to(total)
        return found / self.output_dim**0.5


def make_projector(
    kind: ProjectionKind, input_dim: int, output_dim: int, seed: int, device: torch.device | str = "cpu"
) -> Projector:
    """A projector; the same arguments give the same matrix on every machine."""
    if kind == "sparse":
        return SparseProjector(input_dim, output_dim, seed, device)
    return DenseProjector(input_dim, output_dim, seed, kind)
