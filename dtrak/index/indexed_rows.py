"""Rows in a FAISS index: building it, and searching it with exact products of what it finds."""

import re
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Float64, Int

from dtrak.index.whitening import Whitening
from dtrak.linalg.conjugate_gradients import KrylovKernel
from dtrak.linalg.kernel import LARGE, Kernel, multiply, row_slices
from dtrak.utils.errors import DtrakError

TRAINING_ROWS = 65_536  # rows that a quantiser is trained on
CANDIDATES = 1000  # approximate results that are re-ranked exactly, at least
SHARE = 2000  # one candidate per this many rows, in large indexes
HALVES, FEW = "SQfp16", 100  # float16 needs few candidates: its order is nearly exact
PROBES = 16  # a search visits 1/16 of the lists of an inverted file
FLAT = "Flat"
EXACT = "Set index_factory: Flat (exact, and fast enough below a million rows)."
MOST_NUMBERS = 2**28  # elements that a quantiser is trained on, at most


@dataclass(frozen=True)
class IndexedRows:
    """A FAISS index with its rows.

    Attributes:
        index: the FAISS index.
        features: Φ, for exact scores.
        white: the coordinates of the indexed vectors; None for raw features.
        factory: see :func:`build_index`.
    """

    index: Any
    features: Float[np.ndarray, "n k"]
    white: Whitening | None
    factory: str

    @property
    def exact(self) -> bool:
        """Whether the index's own inner products are exact."""
        return self.factory == FLAT

    @property
    def candidates(self) -> int:
        """The number of approximate results that are re-ranked exactly."""
        return FEW if self.factory == HALVES else max(CANDIDATES, self.index.ntotal // SHARE)

    @classmethod
    def build(cls, features: Float[np.ndarray, "n k"], factory: str, kernel: Kernel | KrylovKernel) -> "IndexedRows":
        """Build an index of all rows, block by block.

        Raises:
            DtrakError: the factory is invalid, or FAISS cannot train it on so few rows.
        """
        rows = len(features)
        size, inner = split_white(factory)
        white = Whitening.of(kernel, size) if size else None

        def vectors(part: slice) -> np.ndarray:
            block = np.ascontiguousarray(features[part], dtype=np.float32)
            return block if white is None else block @ white.rows

        try:
            index = faiss.index_factory(size or features.shape[1], inner, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(vectors(slice(None, None, -(-rows // _training_rows(index, *features.shape)))))
            for part in row_slices(features.shape, LARGE):
                index.add(vectors(part))
        except RuntimeError as error:
            raise DtrakError(
                f"FAISS could not build '{factory}' over {rows} rows: {error}",
                hint=EXACT,
            ) from error
        set_probes(index)
        return cls(index, features, white, factory)

    def search(
        self, queries: Float[np.ndarray, "q k"], top: int, candidates: int | None = None
    ) -> list[tuple[Int[np.ndarray, " t"], Float[np.ndarray, " t"]]]:
        """See :meth:`AttributionIndex.search`; here for several queries at once.

        Args:
            candidates: number of candidates to re-rank, at least twice ``top``; default :attr:`candidates`.
        """
        wanted = min(top if self.exact else max(candidates or self.candidates, 2 * top), self.index.ntotal)
        seen = queries if self.white is None else np.stack([self.white.of_query(q) for q in queries])
        _, found = self.index.search(np.ascontiguousarray(seen, dtype=np.float32), wanted)
        return [self._ranked(q, rows, top) for q, rows in zip(queries, found, strict=True)]

    def _ranked(
        self, q: Float[np.ndarray, " k"], rows: np.ndarray, top: int
    ) -> tuple[Int[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
        rows = np.sort(rows[rows >= 0])  # approximate indexes may return fewer; read the file sequentially
        products = multiply(self.features[rows], q)
        best = np.argsort(-products, kind="stable")[:top]
        return rows[best], products[best]


def split_white(factory: str) -> tuple[int, str]:
    """The m of a prefix "White<m>," (0 without it), and the rest of the string."""
    found = re.match(r"White(\d+),", factory)
    return (int(found[1]), factory[found.end() :]) if found else (0, factory)


def _training_rows(index: Any, rows: int, dim: int) -> int:
    """The number of rows to train a quantiser on: enough for every list of an inverted file."""
    lists = getattr(faiss.try_extract_index_ivf(index), "nlist", 0)
    return max(1, min(rows, max(TRAINING_ROWS, 40 * lists), MOST_NUMBERS // dim))


def set_probes(index: Any) -> None:
    """Make searches of an inverted file visit a fixed share of its lists."""
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = max(lists.nprobe, lists.nlist // PROBES)
