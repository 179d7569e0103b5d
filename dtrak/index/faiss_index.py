"""The FAISS inner-product index of the training features, with the kernel that turns query features into queries q.

``index/<fingerprint>/`` contains ``vectors.faiss``; ``features.npy``, Φ for exact scores; the kernel's
``eigenvalues.npy`` and ``eigenvectors.npy`` if they fit in memory; ``norms.npy``; ``white-*.npy`` for whitened
indexes; and, written last, ``manifest.json``. λ is applied to the query, so the index does not depend on it. Opponents
are found by searching −q. Arrays and most FAISS indexes are memory-mapped.
"""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Float64, Int

from dtrak.index.indexed_rows import EXACT, FLAT, IndexedRows, set_probes, split_white
from dtrak.index.store import FeatureStore, index_is_built
from dtrak.index.whitening import Whitening, no_whitening
from dtrak.linalg.conjugate_gradients import KrylovKernel, fits, kernel_of
from dtrak.linalg.kernel import Kernel, multiply, row_norms
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, read_json, read_note, sha256_file, write_json, write_npy
from dtrak.utils.noise import keyed_generator

SMALL, SAMPLED = 2**26, 64  # bytes of files that are hashed when opened; rows that are checked in others
MANY_NUMBERS = 2**26  # of Φ: above it, a pass over all rows takes long
FEWEST_DRAWN, NUMBERS_DRAWN = 2000, 2**23  # of the sample of rows that stands for all: rows at least, and numbers


def _check_files(folder: Path, hashes: dict[str, str]) -> None:
    """Check the hashes of the small files of an index; ``verify`` checks all.

    Raises:
        ValueError: one does not match.
    """
    for name, known in hashes.items():
        if (folder / name).stat().st_size <= SMALL and sha256_file(folder / name) != known:
            raise ValueError(f"{name} does not match its hash")


def _check_rows(features: Float[np.ndarray, "n k"], norms: Float[np.ndarray, " n"]) -> None:
    """Check the norms of some rows.

    Raises:
        ValueError: one differs, or there is not one norm for each row.
    """
    if len(features) != len(norms):
        raise ValueError(f"{len(features)} rows, but {len(norms)} norms")
    rows = np.linspace(0, len(norms) - 1, min(SAMPLED, len(norms))).astype(int)
    if not np.allclose(row_norms(np.asarray(features[rows])), norms[rows], rtol=1e-4):
        raise ValueError("features.npy does not match norms.npy")


def build_index(store: FeatureStore, root: Path, factory: str = FLAT) -> Path:
    """Build the index of a complete store in ``root``, unless it exists with the same factory; returns its folder.

    Args:
        factory: a FAISS factory string; "Flat" is exact. The prefix "White64," stores the 64 leading coordinates
            of :mod:`dtrak.index.whitening` instead of raw features.

    Raises:
        DtrakError: the factory is invalid, or FAISS cannot train it on so few rows.
    """
    folder = root / store.fingerprint
    manifest = folder / "manifest.json"
    if index_is_built(folder) and read_note(manifest).get("factory") == factory:
        return folder
    _check_factory(factory, store.rows, store.dim)
    manifest.unlink(missing_ok=True)
    with atomic_write(folder / "features.npy") as file:
        store.write_rows(file)
    features = np.asarray(np.load(folder / "features.npy", mmap_mode="r"))
    kernel = kernel_of(features)
    arrays: dict[str, np.ndarray] = {"norms.npy": row_norms(features)}
    if isinstance(kernel, Kernel):
        arrays |= {"eigenvalues.npy": kernel.eigenvalues, "eigenvectors.npy": kernel.eigenvectors}
    indexed = IndexedRows.build(features, factory, kernel)
    if indexed.white:
        arrays |= {"white-rows.npy": indexed.white.rows, "white-queries.npy": indexed.white.queries}
    with atomic_write(folder / "vectors.faiss") as file:
        faiss.write_index(indexed.index, file.name)
    for name, array in arrays.items():
        write_npy(folder / name, array)
    content = {
        "identity": store.identity,
        "factory": factory,
        "dual": kernel.dual if isinstance(kernel, Kernel) else None,
        "rows": store.rows,
        "sha256": {name: sha256_file(folder / name) for name in ("vectors.faiss", "features.npy", *arrays)},
    }
    write_json(manifest, content)
    return folder


def _check_factory(factory: str, rows: int, dim: int) -> None:
    """Check that the factory can be built, before deleting or computing anything.

    Raises:
        DtrakError: it cannot.
    """
    size, inner = split_white(factory)
    if size and not (rows > dim >= size and fits(rows, dim)):
        raise no_whitening(size)
    try:
        faiss.index_factory(size or dim, inner, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise DtrakError(f"Invalid index_factory '{factory}': {error}", hint=EXACT) from error


@dataclass(frozen=True)
class QueryFeature:
    """A query's feature and its identity.

    Attributes:
        parts: one row per (timestep, draw) pair if ``apart``; otherwise a single row or vector, their mean.
        identity: everything its values depend on (:func:`dtrak.gradients.extractor.identity`).
        values: mean((ε_θ − ε)²) and mean(ε_θ²) of each pair.
        blocks: the mean split by block of the network.
    """

    parts: Float[np.ndarray, "*parts k"]
    identity: dict[str, Any]
    values: Float[np.ndarray, "pairs 2"] | None = None
    blocks: Float[np.ndarray, "blocks k"] | None = None

    @cached_property
    def vector(self) -> Float[np.ndarray, " k"]:
        """φ(x), the mean of the parts, float32."""
        return np.atleast_2d(self.parts).mean(0, dtype=np.float64).astype(np.float32)


class AttributionIndex:
    """A built index, opened for searching.

    Args:
        folder: ``index/<fingerprint>``.
        store: the feature store it was built from.

    Raises:
        DtrakError: it is not built, or damaged.
    """

    def __init__(self, folder: Path, store: FeatureStore):
        if not index_is_built(folder):
            raise DtrakError(f"The index {folder.name} is not built.", hint="python -m index_builder build STUDY")
        manifest = read_json(folder / "manifest.json")
        self.folder, self.store = folder, store
        try:
            self.identity: dict[str, Any] = manifest["identity"]
            _check_files(folder, manifest["sha256"])
            index = faiss.read_index(str(folder / "vectors.faiss"), faiss.IO_FLAG_MMAP_IFC)
            self.features = self._array("features")
            white = None
            if split_white(manifest["factory"])[0]:
                white = Whitening(self._array("white-rows"), self._array("white-queries"))
            set_probes(index)
            self._indexed = IndexedRows(_to_gpus(index), self.features, white, manifest["factory"])
            self.kernel: Kernel | KrylovKernel
            if manifest["dual"] is None:
                self.kernel = KrylovKernel(self.features)
            else:
                values, vectors = (self._array(name) for name in ("eigenvalues", "eigenvectors"))
                self.kernel = Kernel(values, vectors, manifest["dual"])
            self.norms = self._array("norms")
            _check_rows(self.features, self.norms)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise DtrakError(
                f"The index {folder} is damaged: {error}", hint="python -m index_builder verify STUDY --repair"
            ) from error

    def _array(self, name: str) -> np.ndarray:
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r"))

    def check(self, query: QueryFeature) -> None:
        """Check that a query's feature was computed like the index's features.

        Raises:
            DtrakError: it was not; the message names the fields that differ.
        """
        differing = [
            f"{key} (index: {self.identity.get(key)}, query: {query.identity.get(key)})"
            for key in sorted({*self.identity, *query.identity})
            if self.identity.get(key) != query.identity.get(key)
        ]
        if differing:
            raise DtrakError(
                f"The query does not match this index; they differ in {'; '.join(differing)}.",
                hint="Rebuild the study so that index and model match: python -m index_builder build STUDY",
            )

    @property
    def is_large(self) -> bool:
        """Whether a pass over all rows takes long."""
        return self.features.size > MANY_NUMBERS

    def search(self, q: Float[np.ndarray, " k"], top: int) -> tuple[Int[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
        """The rows with the ``top`` largest inner products with ``q``, and these products, descending.

        What the index finds is ranked by products with the raw rows in float64.
        """
        return self._indexed.search(q[None], top)[0]

    def both_ends(
        self, q: Float[np.ndarray, " k"], top: int
    ) -> list[tuple[Int[np.ndarray, " t"], Float64[np.ndarray, " t"]]]:
        """The rows with the ``top`` largest and with the ``top`` smallest inner products with ``q``, and these.

        Equal to :meth:`search` for q and, with the sign turned, for −q, in one call.
        """
        largest, (rows, products) = self._indexed.search(np.stack([q, -q]), top)
        return [largest, (rows, -products)]

    def sampled(self, q: Float[np.ndarray, " k"]) -> Float64[np.ndarray, " s"]:
        """The inner products with a fixed random sample of rows, which is read once."""
        return multiply(self._sample, q)

    def of_rows(self, q: Float[np.ndarray, " k"], rows: Int[np.ndarray, " r"]) -> Float64[np.ndarray, " r"]:
        """The inner products with some rows."""
        return multiply(self.features[rows], q)

    @cached_property
    def sampled_rows(self) -> Int[np.ndarray, " s"]:
        """The rows of the sample, ascending; those of an index with more columns are among those of one with fewer."""
        rows, columns = self.features.shape
        count = min(rows, max(FEWEST_DRAWN, NUMBERS_DRAWN // columns))
        return np.sort(keyed_generator("sampled rows", 0, "").permutation(rows)[:count])

    @cached_property
    def _sample(self) -> Float[np.ndarray, "s k"]:
        return np.ascontiguousarray(self.features[self.sampled_rows])

    def scores(self, query: QueryFeature, damping: float | None) -> Float64[np.ndarray, " n"]:
        """Exact scores of all training samples; inner products without damping.

        Raises:
            DtrakError: the query does not match the index.
        """
        self.check(query)
        if damping is None:
            return multiply(self.features, query.vector)
        return self.kernel.scores(self.features, query.vector, damping)

    def searchable(self, query: QueryFeature, damping: float | None) -> Float64[np.ndarray, " k"]:
        """The vector q whose inner products with the raw rows are :meth:`scores`.

        Raises:
            DtrakError: the query does not match the index.
        """
        self.check(query)
        if damping is None:
            return query.vector.astype(np.float64)
        return self.kernel.precondition(self.features, query.vector, damping)


def _to_gpus(index: Any) -> Any:
    if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
        with contextlib.suppress(RuntimeError):  # some encodings are not available on GPUs
            return faiss.index_cpu_to_all_gpus(index)
    return index
