"""The feature store: shards of Φ on disk that know whether they are finished.

``features/<fingerprint>/`` holds ``manifest.json`` (what the numbers depend on), and for each
shard ``shard-00003.npy`` and its completion mark ``shard-00003.json``, written after it:

- the mark exists: the shard is whole, and the mark holds its hash;
- it does not: the shard is missing or was interrupted, and is computed again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dtrak.errors import DtrakError
from dtrak.files import digest, read_json, sha256_file, write_json, write_npy


@dataclass(frozen=True)
class FeatureStore:
    """One feature set of one training set.

    Attributes:
        folder: ``features/<fingerprint>``.
        identity: everything the numbers depend on (:func:`dtrak.features.identity`).
        rows: N, the number of training samples.
        dim: k, the projection's dimension.
        dtype: of the stored numbers, "float32" or "float16".
        shard_size: rows per shard; the last may have fewer.
    """

    folder: Path
    identity: dict[str, Any]
    rows: int
    dim: int
    dtype: str = "float32"
    shard_size: int = 32

    @classmethod
    def create(cls, root: Path, identity: dict[str, Any], rows: int, shard_size: int = 32) -> "FeatureStore":
        """Open the store of this identity below ``root``, making its manifest if it is new."""
        folder = root / digest(identity)
        if (folder / "manifest.json").exists():
            return cls.open(folder)
        store = cls(folder, identity, rows, identity["projection"]["dim"], identity["dtype"], shard_size)
        content = {"identity": identity, "rows": rows, "dim": store.dim, "dtype": store.dtype}
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

    def write(self, shard: int, features: Float[np.ndarray, "rows k"]) -> None:
        """Store a shard, then mark it complete."""
        array = features.astype(self.dtype)
        if not np.isfinite(array).all():
            raise DtrakError(
                f"Features overflow {self.dtype} in shard {shard}.", hint="Set dtype: float32 for this feature set."
            )
        write_npy(self._path(shard), array)
        write_json(self._mark(shard), {"sha256": sha256_file(self._path(shard)), "rows": len(array)})

    def read(self) -> Float[np.ndarray, "n k"]:
        """All features, in the order of the training rows.

        Raises:
            DtrakError: shards are missing or damaged.
        """
        if missing := self.missing():
            raise DtrakError(
                f"{len(missing)} of {len(self.shards)} shards of feature set {self.fingerprint} are not built.",
                hint="Run the build again; it resumes.",
            )
        result = np.empty((self.rows, self.dim), dtype=self.dtype)
        for shard in self.shards:
            rows = self.shard_rows(shard)
            result[rows.start : rows.stop] = self._load(shard)
        return result

    def verify(self) -> list[str]:
        """Problems in plain words, found by hashing every shard."""
        problems = [f"shard {shard} is not built" for shard in self.missing()]
        return problems + [f"shard {shard} is gone or has another hash than its mark" for shard in self.damaged()]

    def discard(self, shard: int) -> None:
        """Forget a shard, mark first, so that the next build computes it again."""
        self._mark(shard).unlink(missing_ok=True)
        self._path(shard).unlink(missing_ok=True)

    def damaged(self) -> list[int]:
        """Shards that are marked complete and whose data is gone or has another hash."""
        return [
            shard
            for shard in self.shards
            if self._mark(shard).exists()
            and (
                not self._path(shard).exists()
                or sha256_file(self._path(shard)) != read_json(self._mark(shard))["sha256"]
            )
        ]

    def _load(self, shard: int) -> np.ndarray:
        try:
            array = np.load(self._path(shard), mmap_mode="r")
            if array.shape != (len(self.shard_rows(shard)), self.dim):
                raise ValueError(f"shape {array.shape}")
            return array
        except (OSError, ValueError) as error:
            raise DtrakError(
                f"{self._path(shard)} is damaged: {error}",
                hint="python -m index_builder verify STUDY --repair, then build again.",
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npy"

    def _mark(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"
