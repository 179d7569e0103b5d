"""Random projections P: R^D → R^k that keep inner products, ``E⟨Px, Py⟩ = ⟨x, y⟩``.

``SparseProjector`` (default) adds each coordinate, with a random sign, to one of k buckets: a
count sketch (Charikar, Chen & Farach-Colton, 2002). Its hash works in blocks of k coordinates,
each shifted round by a random amount, so that projecting is a few long additions and D signs
are all that is stored. ``DenseProjector`` draws a full matrix (normal or Rademacher entries,
scaled by 1/√k, as in TRAK); it is the slow reference that tests and benchmarks compare with.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dtrak.config import ProjectionKind
from dtrak.noise import keyed_generator

PROJECTION_VERSION = 1  # part of every fingerprint: raise it whenever the matrices below change

CHUNK = 2**16  # coordinates that are given their signs at a time; they stay in the cache


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
        self._shifts: list[int] = keyed_generator("shift", seed, "").integers(0, output_dim, blocks).tolist()
        self._moves: dict[tuple[int, int], list[_Move]] = {}

    def __call__(self, pieces: Pieces, starts: Sequence[int] | None = None) -> Float[Tensor, "n k"]:
        """See :class:`Projector`; float64 stays float64."""
        pieces, k = _flat(pieces), self.output_dim
        ring = pieces[0].new_zeros(len(pieces[0]), 2 * k)  # a shifted block wraps at most once
        on_cpu = ring.device.type == "cpu"  # NumPy's calls cost a quarter of torch's, and there are many
        signs: Any = self._signs.numpy() if on_cpu else self._signs
        total: Any = _one_row(ring.numpy() if on_cpu else ring)
        for piece, start in zip(pieces, _starts(pieces, starts, self.input_dim), strict=True):
            values: Any = _one_row(piece.detach().numpy() if on_cpu else piece)
            for move in self._plan(start, piece.shape[1]):
                signed = values[..., move.source] * signs[move.signs]
                for source, bucket in move.additions:
                    total[..., bucket] += signed[..., source]
        return ring[:, :k] + ring[:, k:]

    def _plan(self, start: int, size: int) -> "list[_Move]":
        """What to add where for a piece; kept, for a network's parameters are the same ones every time."""
        if (start, size) not in self._moves:
            self._moves[start, size] = [
                self._move(start, first, min(first + CHUNK, start + size))
                for first in range(start, start + size, CHUNK)
            ]
        return self._moves[start, size]

    def _move(self, start: int, first: int, stop: int) -> "_Move":
        k, additions = self.output_dim, []
        for block in range(first // k, -(-stop // k)):
            low, high = max(first, block * k), min(stop, (block + 1) * k)
            bucket = self._shifts[block] + low - block * k
            additions.append((slice(low - first, high - first), slice(bucket, bucket + high - low)))
        return _Move(slice(first - start, stop - start), slice(first, stop), additions)


@dataclass(frozen=True)
class _Move:
    """A stretch of a piece: where it lies in the piece and among the signs, and what of it is added where."""

    source: slice
    signs: slice
    additions: list[tuple[slice, slice]]


def _flat(pieces: Pieces) -> list[Tensor]:
    pieces = [pieces] if isinstance(pieces, Tensor) else list(pieces)
    dtype = functools.reduce(torch.promote_types, (piece.dtype for piece in pieces))
    return [piece.flatten(1).to(dtype) for piece in pieces]


def _one_row(array: Any) -> Any:
    return array[0] if len(array) == 1 else array  # calls on one axis are quicker than on two


def _starts(pieces: list[Tensor], starts: Sequence[int] | None, input_dim: int) -> Sequence[int]:
    if starts is not None:
        return starts
    *found, size = accumulate((piece.shape[1] for piece in pieces), initial=0)
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
        pieces = _flat(pieces)
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
