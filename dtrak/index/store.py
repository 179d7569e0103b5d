"""The feature store: shards of Φ on disk that know whether they are finished.

``features/<fingerprint>/`` holds ``manifest.json`` (what the numbers depend on), and for each
shard ``shard-00003.npy`` (features), ``shard-00003.values.npy`` (what the model's predictions
were, see :class:`dtrak.gradients.extractor.SampleFeature`) and its completion mark ``shard-00003.json``,
written after them:

- the mark exists: the shard is whole, and the mark holds its hash;
- it does not: the shard is missing or was interrupted, and is computed again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_json, sha256_file, write_json, write_npy


def index_is_built(folder: Path) -> bool:
    """Whether ``index/<fingerprint>`` holds a whole index; one without Φ was made by an older dtrak."""
    return (folder / "manifest.json").exists() and (folder / "features.npy").exists()


@dataclass(frozen=True)
class FeatureStore:
    """One feature set of one training set.

    Attributes:
        folder: ``features/<fingerprint>``.
        identity: everything the numbers depend on (:func:`dtrak.gradients.extractor.identity`).
        rows: N, the number of training samples.
        dim: k, the projection's dimension.
        parts: P, how many (timestep, draw) pairs are kept apart; 1 if only their mean is.
        dtype: of the stored numbers, "float32" or "float16".
        shard_size: rows per shard; the last may have fewer.
    """

    folder: Path
    identity: dict[str, Any]
    rows: int
    dim: int
    dtype: str = "float32"
    shard_size: int = 32
    parts: int = 1

    @classmethod
    def create(cls, root: Path, identity: dict[str, Any], rows: int, shard_size: int = 32) -> "FeatureStore":
        """Open the store of this identity below ``root``, making its manifest if it is new."""
        folder = root / digest(identity)
        if (folder / "manifest.json").exists():
            return cls.open(folder)
        parts = identity.get("parts", 1)
        store = cls(folder, identity, rows, identity["projection"]["dim"], identity["dtype"], shard_size, parts)
        content = {"identity": identity, "rows": rows, "dim": store.dim, "dtype": store.dtype, "parts": parts}
        write_json(folder / "manifest.json", {**content, "shard_size": shard_size})
        return store

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """Open an existing store.

        Raises:
            DtrakError: there is none, or its manifest does not belong to its folder.
        """
        manifest = read_json(folder / "manifest.json")
        if digest(manifest["identity"]) != folder.name:
            raise DtrakError(f"{folder} holds a manifest of another fingerprint.", hint="Delete the folder and build.")
        return cls(folder, **manifest)

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    @property
    def shards(self) -> range:
        """Numbers of all shards."""
        return range(-(-self.rows // self.shard_size))

    def shard_rows(self, shard: int) -> range:
        """The training rows of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows))

    def missing(self) -> list[int]:
        """Shards still to be computed."""
        return [shard for shard in self.shards if not self._mark(shard).exists()]

    @property
    def complete(self) -> bool:
        return not self.missing()

    def write(
        self,
        shard: int,
        features: Float[np.ndarray, "rows parts k"],
        values: Float[np.ndarray, "rows pairs 2"] | None = None,
    ) -> None:
        """Store a shard, then mark it complete."""
        if len(features) != len(self.shard_rows(shard)):
            raise ValueError(f"shard {shard} has {len(self.shard_rows(shard))} rows, not {len(features)}")
        array = features.astype(self.dtype).reshape(len(features), self.parts, self.dim)
        if not np.isfinite(array).all():
            raise DtrakError(
                f"Features overflow {self.dtype} in shard {shard}.", hint="Set dtype: float32 for this feature set."
            )
        write_npy(self._path(shard), array)
        write_npy(self._values_path(shard), np.zeros((len(array), 0, 2)) if values is None else values)
        hashes = {path.name: sha256_file(path) for path in (self._path(shard), self._values_path(shard))}
        write_json(self._mark(shard), {"sha256": hashes, "rows": len(array)})

    def read(self) -> Float[np.ndarray, "n k"]:
        """All features, the mean of their parts, in the order of the rows.

        Raises:
            DtrakError: shards are missing or damaged.
        """
        return self.weighted(np.full(self.parts, 1 / self.parts))

    def weighted(self, weights: Float[np.ndarray, "*n parts"], dim: int | None = None) -> Float[np.ndarray, "n k"]:
        """``Σ_p weights[p] · part p`` for every row, in float32.

        Args:
            weights: one a part, or one a row and part.
            dim: only the first so many columns.
        """
        self._require_complete()
        dim = self.dim if dim is None else dim
        result = np.zeros((self.rows, dim), dtype=np.float32)
        for shard in self.shards:
            self._add_weighted(shard, weights, result[slice(*self._bounds(shard))])
        return result

    def _add_weighted(self, shard: int, weights: np.ndarray, result: Float[np.ndarray, "rows k"]) -> None:
        start, stop = self._bounds(shard)
        array = self._load(self._path(shard), (stop - start, self.parts, self.dim))
        chosen = weights.astype(np.float32) if weights.ndim == 1 else weights[start:stop, :, None]
        for number in range(self.parts):
            weight = chosen[number] if weights.ndim == 1 else chosen[:, number].astype(np.float32)
            if np.any(weight):  # what does not count is not read
                result += weight * array[:, number, : result.shape[1]].astype(np.float32, copy=False)

    def _bounds(self, shard: int) -> tuple[int, int]:
        rows = self.shard_rows(shard)
        return rows.start, rows.stop

    def write_rows(self, file: IO[bytes]) -> None:
        """Write all features, the mean of their parts, as one .npy, a shard at a time; float16 if that is stored.

        Raises:
            DtrakError: shards are missing or damaged.
        """
        self._require_complete()
        dtype = np.dtype(self.dtype if self.parts == 1 else np.float32)
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**described, "shape": (self.rows, self.dim)})
        for shard in self.shards:
            rows = np.zeros((len(self.shard_rows(shard)), self.dim), dtype=np.float32)
            self._add_weighted(shard, np.full(self.parts, 1 / self.parts), rows)
            file.write(rows.astype(dtype).tobytes())

    def sample(self, most: int) -> Float[np.ndarray, "n k"]:
        """The mean features of at most so many rows: whole shards, spread evenly."""
        self._require_complete()
        count = min(len(self.shards), max(1, most // self.shard_size))  # a shard at least
        chosen = [self.shards[i * len(self.shards) // count] for i in range(count)]
        found = [np.zeros((len(self.shard_rows(shard)), self.dim), dtype=np.float32) for shard in chosen]
        for shard, rows in zip(chosen, found, strict=True):
            self._add_weighted(shard, np.full(self.parts, 1 / self.parts), rows)
        return np.concatenate(found)

    def values(self) -> Float[np.ndarray, "n pairs 2"]:
        """What was written as values, of all rows."""
        self._require_complete()
        return np.concatenate([np.load(self._values_path(shard)) for shard in self.shards])

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("shard-*.npy"))

    def _require_complete(self) -> None:
        if missing := self.missing():
            raise DtrakError(
                f"{len(missing)} of {len(self.shards)} shards of feature set {self.fingerprint} are not built.",
                hint="Run the build again; it resumes.",
            )

    def verify(self) -> list[str]:
        """Problems in plain words, found by hashing every shard."""
        problems = [f"shard {shard} is not built" for shard in self.missing()]
        return problems + [f"shard {shard} is gone or has another hash than its mark" for shard in self.damaged()]

    def discard(self, shard: int) -> None:
        """Forget a shard, mark first, so that the next build computes it again."""
        for path in (self._mark(shard), self._path(shard), self._values_path(shard)):
            path.unlink(missing_ok=True)

    def damaged(self) -> list[int]:
        """Shards that are marked complete and whose data is gone or has another hash."""

        def whole(shard: int) -> bool:
            hashes = read_json(self._mark(shard))["sha256"]
            paths = [self.folder / name for name in hashes]
            return all(p.exists() and sha256_file(p) == hashes[p.name] for p in paths)

        return [shard for shard in self.shards if self._mark(shard).exists() and not whole(shard)]

    def _load(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.load(path, mmap_mode="r")
            if array.shape != shape:
                raise ValueError(f"shape {array.shape}")
            return array
        except (OSError, ValueError) as error:
            raise DtrakError(
                f"{path} is damaged: {error}",
                hint="python -m index_builder verify STUDY --repair, then build again.",
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npy"

    def _values_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.values.npy"

    def _mark(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"
