"""The FAISS inner-product index over raw training features, with what turns queries into answers.

``index/<fingerprint>/`` holds ``vectors.faiss``, the kernel's ``eigenvalues.npy`` and
``eigenvectors.npy`` where they fit in memory, ``norms.npy`` and, written last, ``manifest.json``. λ lives on the query
side, so nothing here depends on it. Opponents are a search for −q.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Float64, Int

from dtrak.errors import DtrakError
from dtrak.files import atomic_write, read_json, sha256_file, write_json, write_npy
from dtrak.kernel import Kernel, multiply
from dtrak.krylov import KrylovKernel, kernel_of
from dtrak.store import FeatureStore


def build_index(store: FeatureStore, root: Path, factory: str = "Flat") -> Path:
    """Build the index of a complete store below ``root``; an existing one of the same factory is kept.

    Args:
        factory: a FAISS factory string; "Flat" is exact.

    Raises:
        DtrakError: FAISS does not know the factory, or cannot train it on so few rows.
    """
    folder = root / store.fingerprint
    manifest = folder / "manifest.json"
    if manifest.exists() and read_json(manifest)["factory"] == factory:
        return folder
    manifest.unlink(missing_ok=True)
    features = store.read()
    try:
        index = faiss.index_factory(store.dim, factory, faiss.METRIC_INNER_PRODUCT)
        vectors = np.ascontiguousarray(features, dtype=np.float32)
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        raise DtrakError(
            f"FAISS could not build '{factory}' over {store.rows} rows: {error}",
            hint="Set index_factory: Flat (exact, and fast enough below a million rows).",
        ) from error
    kernel = kernel_of(features)
    with atomic_write(folder / "vectors.faiss") as file:
        file.write(faiss.serialize_index(index).tobytes())
    spectrum = (
        {"eigenvalues.npy": kernel.eigenvalues, "eigenvectors.npy": kernel.eigenvectors}
        if isinstance(kernel, Kernel)
        else {}
    )
    for name, array in spectrum.items():
        write_npy(folder / name, array)
    write_npy(folder / "norms.npy", np.linalg.norm(vectors.astype(np.float64), axis=1))
    content = {
        "identity": store.identity,
        "factory": factory,
        "dual": kernel.dual if isinstance(kernel, Kernel) else None,
        "rows": store.rows,
        "sha256": {name: sha256_file(folder / name) for name in ("vectors.faiss", *spectrum, "norms.npy")},
    }
    write_json(manifest, content)
    return folder


@dataclass(frozen=True)
class QueryFeature:
    """A query's feature and the identity it was computed under.

    Attributes:
        parts: one row a (timestep, draw) pair where they are kept apart; a single row or vector otherwise.
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
    """An index opened for searching.

    Args:
        folder: ``index/<fingerprint>``.
        store: the feature store it was built from.

    Raises:
        DtrakError: it is not built, or damaged.
    """

    def __init__(self, folder: Path, store: FeatureStore):
        if not (folder / "manifest.json").exists():
            raise DtrakError(f"The index {folder.name} is not built.", hint="python -m index_builder build STUDY")
        manifest = read_json(folder / "manifest.json")
        self.folder, self.store = folder, store
        self.identity: dict[str, Any] = manifest["identity"]
        try:
            self._faiss = _to_gpus(faiss.read_index(str(folder / "vectors.faiss")))
            self.kernel: Kernel | KrylovKernel
            if manifest["dual"] is None:
                self.kernel = KrylovKernel(self.features)
            else:
                values, vectors = (np.load(folder / f"{name}.npy") for name in ("eigenvalues", "eigenvectors"))
                self.kernel = Kernel(values, vectors, manifest["dual"])
            self.norms = np.load(folder / "norms.npy")
        except (OSError, ValueError, RuntimeError) as error:
            raise DtrakError(
                f"The index {folder} is damaged: {error}", hint="python -m index_builder verify STUDY --repair"
            ) from error

    @cached_property
    def features(self) -> Float[np.ndarray, "n k"]:
        """Φ, the raw training features."""
        return self.store.read()

    def check(self, query: QueryFeature) -> None:
        """Refuse a query made in another way than the index was.

        Raises:
            DtrakError: names the fields that differ.
        """
        differing = [
            f"{key} (index: {self.identity.get(key)}, query: {query.identity.get(key)})"
            for key in sorted({*self.identity, *query.identity})
            if self.identity.get(key) != query.identity.get(key)
        ]
        if differing:
            raise DtrakError(
                f"The query does not belong to this index; they differ in {'; '.join(differing)}.",
                hint="Build the study again, so that index and model agree: python -m index_builder build STUDY",
            )

    def search(self, q: Float[np.ndarray, " k"], top: int) -> tuple[Int[np.ndarray, " t"], Float[np.ndarray, " t"]]:
        """Rows of the ``top`` largest inner products with ``q``, and these products, descending."""
        top = min(top, self._faiss.ntotal)
        products, rows = self._faiss.search(np.ascontiguousarray(q, dtype=np.float32)[None], top)
        found = rows[0] >= 0  # approximate indexes may return fewer
        return rows[0][found], products[0][found]

    def scores(self, query: QueryFeature, damping: float | None) -> Float64[np.ndarray, " n"]:
        """Exact scores of all training rows; without damping, plain inner products."""
        self.check(query)
        if damping is None:
            return multiply(self.features, query.vector)
        return self.kernel.scores(self.features, query.vector, damping)

    def searchable(self, query: QueryFeature, damping: float | None) -> Float64[np.ndarray, " k"]:
        """The vector whose inner products with the raw rows are :meth:`scores`."""
        self.check(query)
        if damping is None:
            return query.vector.astype(np.float64)
        return self.kernel.precondition(self.features, query.vector, damping)


def _to_gpus(index: Any) -> Any:
    if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
        return faiss.index_cpu_to_all_gpus(index)
    return index
