"""The table of a study: ``prepare`` validates every image once; everything else reads the table.

``workspace/STUDY/data`` contains ``records.parquet`` (records with the original image files),
``pixels.npy`` (the same rows, preprocessed to uint8 at the study's resolution) and ``report.json``.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from dtrak.config import Study
from dtrak.data.images import BadImage, open_image, to_model_pixels
from dtrak.data.opt_out import opt_out_mark
from dtrak.data.records import COLUMNS, Item, Places, Records
from dtrak.data.sources import listing, read_source
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import atomic_write, digest, read_note, sha256_file, write_json, write_npy
from dtrak.utils.noise import keyed_generator

SPLITS = ("train", "heldout")
REPEATED = ["label", "creator", "licence", "split"]  # columns with few distinct values
DATA_FILES = ("pixels.npy", "records.parquet")


@dataclass
class PrepareReport:
    """The result of ``prepare``: numbers of samples, the skipped files with reasons, and marks against training."""

    train: int = 0
    heldout: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)
    duplicates: list[dict[str, str]] = field(default_factory=list)
    opted_out: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """The samples of a study: training rows first, then held-out rows.

    Attributes:
        folder: ``workspace/STUDY/data``.
        records: one per row.
        pixels: uint8 [rows, r, r, 3], memory-mapped.
        captioned: whether the model is conditioned on captions rather than labels.
    """

    folder: Path
    records: Records
    pixels: UInt8[np.ndarray, "n r r 3"]
    captioned: bool = False

    @cached_property
    def train_size(self) -> int:
        return self.records.count_of("split", "train")

    @cached_property
    def train_records(self) -> Records:
        return self.records[: self.train_size]

    @cached_property
    def rows(self) -> Places:
        """Row number by id."""
        return Places(self.records)

    @cached_property
    def train_ids(self) -> list[str]:
        return [found or "" for found in self.train_records.column("id")]

    @cached_property
    def names(self) -> list[str | None]:
        """The label or caption that the model is conditioned on, for each row."""
        return self.records.column("caption" if self.captioned else "label")

    @cached_property
    def labels(self) -> list[str]:
        """The distinct labels, sorted."""
        return self.records.distinct("label")

    @cached_property
    def train_groups(self) -> tuple[list[str], list[str]]:
        """The labels of the training images, and their creators."""
        labels, creators = (self.train_records.column(name) for name in ("label", "creator"))
        return [label or "" for label in labels], [creator or "" for creator in creators]

    def labels_of(self, names: Sequence[str | None]) -> list[str]:
        """The label of each condition: that of the images with this caption where captions condition; else itself."""
        known = dict(zip(self.names, self.records.column("label"), strict=True))
        return [known.get(name, name) or "" for name in names]

    def original(self, sample_id: str) -> bytes:
        """The original image file of a sample."""
        column = pq.read_table(self.folder / "records.parquet", columns=["image"])["image"]
        return column[self.rows[sample_id]].as_py()

    def fingerprint(self) -> str:
        """A digest of the training rows' ids, names and pixels, which features depend on; pixels are read once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        pixels = hashlib.sha256(np.ascontiguousarray(self.pixels[: self.train_size]).tobytes()).hexdigest()
        return digest([self.train_ids, self.names[: self.train_size], pixels])


def model_pixels(study: Study, image: Image.Image) -> UInt8[np.ndarray, "r r 3"]:
    """An image preprocessed for the study's model."""
    return to_model_pixels(image, study.resolution, study.data.crop, study.data.resample)


def split_of(study: Study, ids: Iterable[str]) -> dict[str, str]:
    """The split of each id: the share ``data.holdout``, with the smallest keyed random numbers, is held out."""
    order = sorted(ids, key=lambda i: keyed_generator("split", study.data.split_seed, i).random())
    held = round(len(order) * study.data.holdout)
    return {i: "heldout" if place < held else "train" for place, i in enumerate(order)}


def prepare(study: Study, folder: Path, report_progress: Callable[[int], None] = lambda n: None) -> PrepareReport:
    """Read, validate and store the data of a study.

    Unusable images and exact duplicates (same pixels at the study's resolution) are skipped and listed
    in the report.

    Args:
        report_progress: called with the number of images read.

    Raises:
        DtrakError: there is no usable image, two samples have the same id, or the source cannot be read.
    """
    report = PrepareReport()
    items: list[Item] = []
    pixels: list[np.ndarray] = []
    first_with: dict[str, str] = {}
    for number, item in enumerate(read_source(study), 1):
        report_progress(number)
        try:
            array = model_pixels(study, open_image(item.image, study.data.max_pixels))
        except BadImage as reason:
            report.refused.append({"id": item.id, "reason": str(reason)})
            continue
        key = hashlib.sha256(array.tobytes()).hexdigest()
        if key in first_with and not study.data.keep_duplicates:
            report.duplicates.append({"id": item.id, "same_as": first_with[key]})
            continue
        first_with[key] = item.id
        if mark := opt_out_mark(item.image) or ("a noai column" if item.opted_out else ""):
            report.opted_out.append({"id": item.id, "mark": mark})
        items.append(item)
        pixels.append(array)
    if not items:
        refused = "".join(f"\n  {r['id']}: {r['reason']}" for r in report.refused[:10])
        raise DtrakError(f"There is no usable image for study '{study.name}'.{refused}", hint="Check data.path.")
    if repeated := [i for i, n in Counter(item.id for item in items).items() if n > 1]:
        raise DtrakError(
            f"{len(repeated)} ids are not unique, for example '{repeated[0]}'.", hint="Check data.id_column."
        )
    drawn = split_of(study, [item.id for item in items])
    splits = {item.id: item.split or drawn[item.id] for item in items}
    order = sorted(range(len(items)), key=lambda i: (SPLITS.index(splits[items[i].id]), i))
    rows: list[dict[str, Any]] = [{**asdict(items[i]), "split": splits[items[i].id]} for i in order]
    write_npy(folder / "pixels.npy", np.stack([pixels[i] for i in order]))
    with atomic_write(folder / "records.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), file)
    report.train = sum(row["split"] == "train" for row in rows)
    report.heldout = len(rows) - report.train
    hashes = {name: sha256_file(folder / name) for name in DATA_FILES}
    write_json(folder / "report.json", {**asdict(report), "config": data_digest(study), "sha256": hashes,
                                         "listing": listing(study)})  # fmt: skip
    return report


def verify_data(folder: Path) -> list[str]:
    """Problems of the prepared data: files that are missing or differ from their recorded hash."""
    report = read_note(folder / "report.json")
    hashes = report.get("sha256", {} if "config" in report else None)  # an earlier version recorded none
    if not isinstance(hashes, dict):
        return ["data: report.json is missing or damaged"]
    return [
        f"data: {name} is missing or damaged"
        for name in DATA_FILES
        if not (folder / name).is_file() or (hashes and sha256_file(folder / name) != hashes.get(name))
    ]


def discard_data(folder: Path) -> None:
    """Mark the data as not prepared, so that the next command prepares them again."""
    (folder / "report.json").unlink(missing_ok=True)


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "label", "caption", "creator", "licence", "split")]
    + [("image", pa.binary())]
)


def data_digest(study: Study) -> str:
    """A digest of the configuration that the prepared data depend on."""
    return digest(
        [study.data.model_dump(mode="json", exclude_defaults=True), study.resolution, str(study.source.parent.name)]
    )


def is_prepared(study: Study, folder: Path) -> bool:
    """Whether ``folder`` contains the prepared data of this configuration; the report is written last."""
    return read_note(folder / "report.json").get("config") == data_digest(study)


def source_changed(study: Study, folder: Path) -> str:
    """How the source differs from when it was prepared, as a sentence; empty if it does not, or is not known."""
    before, now = read_note(folder / "report.json").get("listing"), listing(study)
    if not before or not now or before == now:
        return ""
    return f"The source changed since it was prepared: it had {before['files']} files and now has {now['files']}."


def load_table(folder: Path, captioned: bool = False) -> Table:
    """Open a prepared table.

    Args:
        captioned: whether the model is conditioned on captions rather than labels.

    Raises:
        DtrakError: the data are not prepared.
    """
    if not (folder / "report.json").exists():
        raise DtrakError(
            f"The data of this study are not prepared ({folder}).",
            hint=f"python -m index_builder prepare {folder.parent.name}",
        )
    try:
        table = pq.read_table(folder / "records.parquet", columns=list(COLUMNS), read_dictionary=REPEATED)
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DtrakError(
            f"The prepared data in {folder} are damaged: {error}.",
            hint=f"python -m index_builder verify {folder.parent.name} --repair, then build again.",
        ) from error
    records = Records(table)
    if len(records) != len(pixels):
        raise DtrakError(
            f"The prepared data in {folder} are damaged: {len(records)} records, {len(pixels)} images.",
            hint=f"python -m index_builder verify {folder.parent.name} --repair, then build again.",
        )
    return Table(folder, records, pixels, captioned)
