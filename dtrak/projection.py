"""Random projections P: R^D → R^k that keep inner products, ``E⟨Px, Py⟩ = ⟨x, y⟩``.

``SparseProjector`` (default) adds each coordinate, with a random sign, to one of k buckets: a
count sketch (Charikar, Chen & Farach-Colton, 2002). Its hash works in blocks of k coordinates,
each shifted round by a random amount, so that projecting reads a vector once, from end to end, and
D signs are all that is stored. ``DenseProjector`` draws a full matrix (normal or Rademacher entries,
scaled by 1/√k, as in TRAK); it is the slow reference that tests and benchmarks compare with.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dtrak.config import ProjectionKind
from dtrak.noise import keyed_generator

PROJECTION_VERSION = 1  # part of every fingerprint: raise it whenever the matrices below change

Pieces = Tensor | Sequence[Tensor]


class Projector(Protocol):
    """Maps vectors of ``input_dim`` numbers to ``output_dim`` numbers."""

    input_dim: int
    output_dim: int

    def __call__(self, pieces: Pieces, starts: Sequence[int] | None = None) -> Float[Tensor, "n k"]:
        """Project n vectors, given whole or in pieces (the gradients of a network's parameters).

        Args:
            pieces: each of shape (n, …), flattened in the order of its indices.
            starts: the first coordinate of each piece; without it they follow one another. Other coordinates are 0.

        Raises:
            ValueError: pieces that follow one another are not ``input_dim`` numbers.
        """
        ...


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
        self._shifts = keyed_generator("shift", seed, "").integers(0, output_dim, blocks)

    def __call__(self, pieces: Pieces, starts: Sequence[int] | None = None) -> Float[Tensor, "n k"]:
        """See :class:`Projector`; float64 stays float64."""
        pieces = _listed(pieces)
        starts = _starts(pieces, starts, self.input_dim)
        ring = pieces[0].new_zeros(len(pieces[0]), 2 * self.output_dim)  # a shifted block wraps at most once
        if ring.device.type == "cpu":
            add, total, signs = _compiled_add(), ring.numpy(), self._signs.numpy()
            for piece, start in zip(pieces, starts, strict=True):
                add(total, _tiles(piece), signs, self._shifts, start)
        else:
            for piece, start in zip(pieces, starts, strict=True):
                _add(ring, piece.flatten(1), self._signs, self._shifts.tolist(), start)
        return ring[:, : self.output_dim] + ring[:, self.output_dim :]


def _add(ring: Tensor, values: Tensor, signs: Tensor, shifts: Sequence[int], start: int) -> None:
    """Add coordinates, the first of which is number ``start``, to their buckets."""
    k, stop = ring.shape[1] // 2, start + values.shape[1]
    signed = values * signs[start:stop]
    for block in range(start // k, -(-stop // k)):
        low, high = max(start, block * k), min(stop, (block + 1) * k)
        bucket = shifts[block] + low - block * k
        ring[:, bucket : bucket + high - low] += signed[:, low - start : high - start]


def _tiles(piece: Tensor) -> Float[np.ndarray, "n tiles height width"]:
    """A piece as it lies in memory: its rows are the transposes of these tiles, one after the other.

    The gradient of a convolution may be laid out channels last; all else is one tile of height 1.
    """
    if piece.ndim == 5 and not piece.is_contiguous():
        rows, count, width, *_ = piece.shape
        return np.ascontiguousarray(piece.numpy().transpose(0, 1, 3, 4, 2)).reshape(rows, count, -1, width)
    return piece.numpy().reshape(len(piece), 1, 1, -1)


def _add_tiles(ring: Any, tiles: Any, signs: Any, shifts: Any, start: int) -> None:
    """:func:`_add` for a compiler: each value is read once, and nothing large but the ring is written."""
    rows, count, height, width = tiles.shape
    k, size = ring.shape[1] // 2, height * width
    turned = np.empty(size if height > 1 else 0, tiles.dtype)
    for row in range(rows):
        for number in range(count):
            value = tiles[row, number, 0]
            if height > 1:
                for i in range(height):
                    line = tiles[row, number, i]
                    for j in range(width):
                        turned[j * height + i] = line[j]
                value = turned
            first = start + number * size
            for block in range(first // k, -(-(first + size) // k)):
                low, high = max(first, block * k), min(first + size, (block + 1) * k)
                bucket = shifts[block] + low - block * k
                total, sign = ring[row, bucket : bucket + high - low], signs[low:high]
                added = value[low - first : high - first]
                for i in range(high - low):
                    total[i] += sign[i] * added[i]


@functools.cache
def _compiled_add() -> Callable[..., None]:
    import numba  # here, for it takes a second

    return numba.njit(_add_tiles, nogil=True, cache=True)


def _listed(pieces: Pieces) -> list[Tensor]:
    pieces = [pieces] if isinstance(pieces, Tensor) else list(pieces)
    dtype = functools.reduce(torch.promote_types, {piece.dtype for piece in pieces}, torch.float32)  # numba has no half
    return [piece if piece.dtype == dtype else piece.to(dtype) for piece in pieces]


def _starts(pieces: list[Tensor], starts: Sequence[int] | None, input_dim: int) -> Sequence[int]:
    if starts is not None:
        return starts
    *found, size = accumulate((piece[0].numel() for piece in pieces), initial=0)
    if size != input_dim:
        raise ValueError(f"vectors have {size} numbers, not {input_dim}")
    return found


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

    def __call__(self, pieces: Pieces, starts: Sequence[int] | None = None) -> Float[Tensor, "n k"]:
        """See :class:`Projector`."""
        pieces = [piece.flatten(1) for piece in _listed(pieces)]
        vectors = pieces[0].new_zeros(len(pieces[0]), self.input_dim)
        for piece, start in zip(pieces, _starts(pieces, starts, self.input_dim), strict=True):
            vectors[:, start : start + piece.shape[1]] = piece
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
