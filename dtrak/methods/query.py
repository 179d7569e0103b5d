"""Queries: an image to attribute, and the fixed set of evaluation queries."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dtrak.config import Split
from dtrak.data import Record, Records, Table
from dtrak.data.unrelated import VERSION as UNRELATED_VERSION
from dtrak.data.unrelated import unrelated_images
from dtrak.gradients.region import Region
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder, model_digest, truth_folders
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, digest

QUERIES_FILE = "queries.npz"
FIRST_SEED = 100_000  # of the generated queries; far from seeds that users try
STEPS = 50  # denoising steps of the generated queries


@dataclass(frozen=True)
class Query:
    """An image to attribute.

    Attributes:
        pixels: at the model's resolution.
        label: class or prompt to condition on; None for unconditional.
        settings: generation settings; None for an image that was not generated here.
        region: the part of the image that is asked about; None for all of it. Only the query's own output function
            looks at this part; training images count as wholes.
    """

    pixels: UInt8[np.ndarray, "r r 3"]
    label: str | None = None
    settings: GenerationSettings | None = None
    region: Region | None = None

    @cached_property
    def id(self) -> str:
        """Key of the query's noise, from its pixels: the same image always gets the same noise."""
        return "query:" + hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest()[:32]


@dataclass(frozen=True)
class QuerySet:
    """The evaluation queries: the images on which retrained models' losses are measured.

    Attributes:
        pixels: held-out images first, then generated ones.
        labels: class or prompt of each; "" for unconditional.
        heldout: number of held-out images.
        guidance: guidance scale of the generated images.
        model: digest of the model that generated them.
        split: of the feature sets that hold their features: "truth", or "unrelated" for the significance test.
        rows: the rows of these feature sets; None for all.
    """

    pixels: UInt8[np.ndarray, "q r r 3"]
    labels: tuple[str, ...]
    heldout: int
    guidance: float = 1.0
    model: str = ""
    split: Split = "truth"
    rows: tuple[int, ...] | None = None

    @cached_property
    def queries(self) -> list[Query]:
        """All queries, in order."""
        return [
            Query(pixels, label or None, self.settings(place - self.heldout) if place >= self.heldout else None)
            for place, (pixels, label) in enumerate(zip(self.pixels, self.labels, strict=True))
        ]

    def settings(self, number: int) -> GenerationSettings:
        """Generation settings of generated query ``number`` (from 0)."""
        return generated_settings(number, self.labels[self.heldout + number] or None, self.guidance)

    def take(self, rows: Sequence[int]) -> "QuerySet":
        """Some of the queries, without distinction of held-out and generated ones."""
        labels = tuple(self.labels[row] for row in rows)
        return replace(self, pixels=self.pixels[list(rows)], labels=labels, heldout=len(rows), rows=tuple(rows))

    @property
    def ids(self) -> list[str]:
        """Ids of the queries."""
        return [query.id for query in self.queries]

    @property
    def groups(self) -> dict[str, slice]:
        """Row slices by kind of query: "held-out" (if any) and "generated"."""
        generated = {"generated": slice(self.heldout, None)}
        return {"held-out": slice(0, self.heldout), **generated} if self.heldout else generated

    @cached_property
    def table(self) -> Table:
        """The queries as a table without training rows, for computing their features."""
        records = [Record(query.id, query.label, "", "", "", "truth") for query in self.queries]
        return Table(Path(), Records.of(records), self.pixels)


def generated_settings(number: int, label: str | None, guidance: float) -> GenerationSettings:
    """Generation settings of generated query ``number`` (from 0), for any study."""
    return GenerationSettings(FIRST_SEED + number, STEPS, label, guidance)


def load_query_set(folder: StudyFolder) -> QuerySet:
    """The study's evaluation queries.

    Raises:
        DtrakError: they do not exist yet, or another model generated them.
    """
    found, model = [root for root in truth_folders(folder) if (root / QUERIES_FILE).exists()], model_digest(folder)
    for root in found:
        path = root / QUERIES_FILE
        asked = _read(path, path.stat().st_mtime_ns, folder.study.guidance)
        if asked.model == model:
            return asked
    why = "its evaluation queries were generated by another model" if found else "there are none yet"
    raise DtrakError(
        f"Study '{folder.study.name}' has no retrained models for evaluation: {why}.",
        hint=f"python -m index_builder retrain {folder.study.name}",
    )


@functools.lru_cache(8)
def _read(path: Path, modified: int, guidance: float) -> QuerySet:
    with np.load(path) as stored:
        labels = tuple(stored["labels"].tolist())
        return QuerySet(stored["pixels"], labels, int(stored["heldout"]), guidance, str(stored["model"]))


def unrelated_queries(folder: StudyFolder) -> QuerySet:
    """The unrelated images of the significance test, as queries."""
    table = unrelated_images(folder.study, folder.table)
    labels = tuple(name or "" for name in table.names)
    return QuerySet(table.pixels, labels, len(labels), split="unrelated")


def save_query_set(folder: StudyFolder, queries: QuerySet) -> None:
    """Write the evaluation queries to the workspace."""
    with atomic_write(truth_folders(folder)[0] / QUERIES_FILE) as file:
        np.savez_compressed(
            file,
            pixels=queries.pixels,
            labels=np.array(queries.labels),
            heldout=np.array(queries.heldout),
            model=np.array(queries.model),
        )


def split_rows(folder: StudyFolder, split: Split) -> tuple[Table, range]:
    """The table that holds the rows of a split, and their row numbers.

    Raises:
        DtrakError: the split is "truth" and there are no evaluation queries yet, or the data are not prepared.
    """
    if split == "truth":
        table = load_query_set(folder).table
        return table, range(len(table.records))
    if split == "unrelated":
        table = unrelated_images(folder.study, folder.table)
        return table, range(len(table.records))
    return folder.table, range(folder.table.train_size)


def data_fingerprint(folder: StudyFolder, split: Split) -> str:
    """A digest of the rows that a feature set depends on.

    Raises:
        DtrakError: the split is "truth" and there are no evaluation queries yet, or the data are not prepared.
    """
    if split == "truth":
        table = load_query_set(folder).table
        return digest([[record.id, record.label] for record in table.records])
    if split == "unrelated":
        made = digest([folder.study.unrelated.model_dump(mode="json"), UNRELATED_VERSION])
        return digest([folder.table.fingerprint(), made])
    return folder.table.fingerprint()
