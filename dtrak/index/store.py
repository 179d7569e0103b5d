"""The feature store: shards of Φ on disk, each with a completion mark.

``features/<fingerprint>/`` contains ``manifest.json`` (everything the values depend on) and for each
shard ``shard-00003.npy`` (features), ``shard-00003.values.npy`` (statistics of the model's predictions,
see :class:`dtrak.gradients.extractor.SampleFeature`) and its completion mark ``shard-00003.json``,
written after them:

- the mark exists: the shard is complete, and the mark contains its hashes;
- it does not: the shard is missing or was interrupted, and will be computed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from dtrak.gradients.narrow import narrowed
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, read_json, read_note, sha256_file, write_json, write_npy


def index_is_built(folder: Path) -> bool:
    """Whether ``index/<fingerprint>`` contains a complete index; one without Φ is of an older version."""
    return (folder / "manifest.json").exists() and (folder / "features.npy").exists()


def unit_rows(features: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Every row scaled to length 1, in its own type; rows of zeros stay."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


@dataclass(frozen=True)
class FeatureStore:
    """One feature set on disk.

    Attributes:
        folder: ``features/<fingerprint>``.
        identity: everything the values depend on (:func:`dtrak.gradients.extractor.identity`).
        rows: number of samples, N for the training set.
        dim: k, the projected dimension.
        parts: number of (timestep, draw) pairs that are stored separately; 1 if only their mean is stored.
        dtype: stored type, "float32" or "float16".
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
        """Open the store of this identity in ``root``, creating it if it does not exist."""
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
            DtrakError: there is none, or its manifest does not match its folder.
        """
        hint = "Run python -m index_builder verify STUDY --repair, then build again."
        manifest = read_json(folder / "manifest.json")
        try:
            if digest(manifest["identity"]) != folder.name:
                raise DtrakError(f"The manifest in {folder} has another fingerprint.", hint=hint)
            return cls(folder, **manifest)
        except (KeyError, TypeError) as error:
            raise DtrakError(f"The manifest in {folder} is damaged: {error}.", hint=hint) from error

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(-(-self.rows // self.shard_size))

    def shard_rows(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.rows))

    def missing(self) -> list[int]:
        """The shards without a completion mark."""
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
        """Write a shard, then its completion mark.

        Raises:
            ValueError: the number of rows is wrong.
            DtrakError: the values overflow the store's ``dtype``, or the files cannot be written.
        """
        if len(features) != len(self.shard_rows(shard)):
            raise ValueError(f"shard {shard} needs {len(self.shard_rows(shard))} rows, got {len(features)}")
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
        """All features in row order, averaged over parts, float32.

        Raises:
            DtrakError: shards are missing or damaged.
        """
        return self.weighted(np.full(self.parts, 1 / self.parts))

    def weighted(
        self, weights: Float[np.ndarray, "*n parts"], dim: int | None = None, unit: bool = False
    ) -> Float[np.ndarray, "n k"]:
        """``Σ_p weights[p] · part p`` for every row, in float32.

        Args:
            weights: one per part, or one per row and part.
            dim: narrow the projection to this many columns (:func:`dtrak.gradients.narrow.narrowed`).
            unit: scale each row of a part to length 1 first.

        Raises:
            DtrakError: shards are missing or damaged.
        """
        self._require_complete()
        dim = self.dim if dim is None else dim
        result = np.zeros((self.rows, dim), dtype=np.float32)
        for shard in self.shards:
            self._add_weighted(shard, weights, result[slice(*self._bounds(shard))], unit)
        return result

    def _add_weighted(
        self, shard: int, weights: np.ndarray, result: Float[np.ndarray, "rows k"], unit: bool = False
    ) -> None:
        start, stop = self._bounds(shard)
        array = self._load(self._path(shard), (stop - start, self.parts, self.dim))
        chosen = weights.astype(np.float32) if weights.ndim == 1 else weights[start:stop, :, None]
        for number in range(self.parts):
            weight = chosen[number] if weights.ndim == 1 else chosen[:, number].astype(np.float32)
            if np.any(weight):  # parts with weight 0 are not read
                part = array[:, number].astype(np.float32, copy=False)
                part = unit_rows(part) if unit else part
                result += weight * narrowed(part, result.shape[1], self.identity["projection"]["kind"])

    def _bounds(self, shard: int) -> tuple[int, int]:
        rows = self.shard_rows(shard)
        return rows.start, rows.stop

    def write_rows(self, file: IO[bytes]) -> None:
        """Write all features, averaged over parts, as one .npy, shard by shard; float16 for a single float16 part.

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
        """Features of about ``most`` rows, averaged over parts, float32: evenly spaced shards, at least one.

        Raises:
            DtrakError: shards are missing or damaged.
        """
        self._require_complete()
        count = min(len(self.shards), max(1, most // self.shard_size))
        chosen = [self.shards[i * len(self.shards) // count] for i in range(count)]
        found = [np.zeros((len(self.shard_rows(shard)), self.dim), dtype=np.float32) for shard in chosen]
        for shard, rows in zip(chosen, found, strict=True):
            self._add_weighted(shard, np.full(self.parts, 1 / self.parts), rows)
        return np.concatenate(found)

    def values(self) -> Float[np.ndarray, "n pairs 2"]:
        """The values of all rows; see :meth:`write`.

        Raises:
            DtrakError: shards are missing.
        """
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
                hint="Run the build again to resume it.",
            )

    def verify(self) -> list[str]:
        """Check the hash of every shard; a list of problems, empty if there are none."""
        problems = [f"shard {shard} is not built" for shard in self.missing()]
        return problems + [f"shard {shard} is missing or does not match its hash" for shard in self.damaged()]

    def discard(self, shard: int) -> None:
        """Delete a shard, its mark first, so that the next build recomputes it."""
        for path in (self._mark(shard), self._path(shard), self._values_path(shard)):
            path.unlink(missing_ok=True)

    def damaged(self) -> list[int]:
        """The shards that are marked complete but whose files are missing or do not match their hashes."""

        def whole(shard: int) -> bool:
            hashes = read_note(self._mark(shard)).get("sha256", {"mark": ""})
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
                hint="Run python -m index_builder verify STUDY --repair, then build again.",
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npy"

    def _values_path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.values.npy"

    def _mark(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"
