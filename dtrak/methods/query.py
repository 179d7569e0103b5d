"""What is attributed: one image, and the fixed set of images that retrained models are asked about."""

import functools
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dtrak.config import Split
from dtrak.data import Record, Table
from dtrak.models.sampling import GenerationSettings
from dtrak.study.folder import StudyFolder, model_digest, truth_folders
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, digest

QUERIES_FILE = "queries.npz"
FIRST_SEED = 100_000  # of the generated queries: far from seeds that people try
STEPS = 50


@dataclass(frozen=True)
class Query:
    """An image to attribute.

    Attributes:
        pixels: as the model sees it.
        label: the class to condition on, or None for any.
        settings: what it was generated from, or None for an image from elsewhere.
    """

    pixels: UInt8[np.ndarray, "r r 3"]
    label: str | None = None
    settings: GenerationSettings | None = None

    @cached_property
    def id(self) -> str:
        """Keys the noise of the query's feature: the same pixels always meet the same noise."""
        return "query:" + hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest()[:32]


@dataclass(frozen=True)
class QuerySet:
    """The images that retrained models are evaluated on.

    Attributes:
        pixels: held-out images first, then generated ones.
        labels: what each is conditioned on; "" for none.
        heldout: how many are held-out images.
        guidance: that the generated ones were drawn with.
        model: digest of the model that drew them.
    """

    pixels: UInt8[np.ndarray, "q r r 3"]
    labels: tuple[str, ...]
    heldout: int
    guidance: float = 1.0
    model: str = ""

    @cached_property
    def queries(self) -> list[Query]:
        """As queries; their ids follow from their pixels."""
        return [
            Query(pixels, label or None, self.settings(place - self.heldout) if place >= self.heldout else None)
            for place, (pixels, label) in enumerate(zip(self.pixels, self.labels, strict=True))
        ]

    def settings(self, number: int) -> GenerationSettings:
        """What generated query ``number`` (from 0) is drawn with."""
        return generated_settings(number, self.labels[self.heldout + number] or None, self.guidance)

    @property
    def ids(self) -> list[str]:
        """Ids of the queries."""
        return [query.id for query in self.queries]

    @property
    def groups(self) -> dict[str, slice]:
        """The kinds of queries: "held-out" and "generated"."""
        generated = {"generated": slice(self.heldout, None)}
        return {"held-out": slice(0, self.heldout), **generated} if self.heldout else generated

    @cached_property
    def table(self) -> Table:
        """The queries as rows that features can be computed of; none of them is a training row."""
        records = tuple(Record(query.id, query.label, "", "", "", "truth") for query in self.queries)
        return Table(Path(), records, self.pixels)


def generated_settings(number: int, label: str | None, guidance: float) -> GenerationSettings:
    """What generated query ``number`` (from 0) of any study is drawn with."""
    return GenerationSettings(FIRST_SEED + number, STEPS, label, guidance)


def load_query_set(folder: StudyFolder) -> QuerySet:
    """The study's evaluation queries.

    Raises:
        DtrakError: they were not drawn yet, or by another model.
    """
    found, model = [root for root in truth_folders(folder) if (root / QUERIES_FILE).exists()], model_digest(folder)
    for root in found:
        path = root / QUERIES_FILE
        asked = _read(path, path.stat().st_mtime_ns, folder.study.guidance)
        if asked.model == model:
            return asked
    why = "those it has were asked about pictures of another model" if found else "there are none yet"
    raise DtrakError(
        f"Study '{folder.study.name}' has no retrained models to be judged by: {why}.",
        hint=f"python -m index_builder retrain {folder.study.name}",
    )


@functools.lru_cache(8)
def _read(path: Path, modified: int, guidance: float) -> QuerySet:
    with np.load(path) as stored:
        labels = tuple(stored["labels"].tolist())
        return QuerySet(stored["pixels"], labels, int(stored["heldout"]), guidance, str(stored["model"]))


def save_query_set(folder: StudyFolder, queries: QuerySet) -> None:
    """Keep the queries in the workspace."""
    with atomic_write(truth_folders(folder)[0] / QUERIES_FILE) as file:
        np.savez_compressed(
            file,
            pixels=queries.pixels,
            labels=np.array(queries.labels),
            heldout=np.array(queries.heldout),
            model=np.array(queries.model),
        )


def split_rows(folder: StudyFolder, split: Split) -> tuple[Table, range]:
    """The table that holds the rows of a split, and which they are.

    Raises:
        DtrakError: the split is "truth" and its queries were not drawn yet.
    """
    if split == "truth":
        table = load_query_set(folder).table
        return table, range(len(table.records))
    table = folder.table
    return table, range(table.train_size) if split == "train" else range(table.train_size, len(table.records))


def data_fingerprint(folder: StudyFolder, split: Split) -> str:
    """A digest of the rows that a feature set depends on."""
    if split == "truth":
        table = load_query_set(folder).table
        return digest([[record.id, record.label] for record in table.records])
    return folder.table.fingerprint()
