"""Reading images from folders, Parquet files and the Hugging Face Hub, through ``datasets``."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtrak.config import DataConfig, Study
from dtrak.data.captions import caption_beside
from dtrak.data.records import Item
from dtrak.data.releases import release_rows
from dtrak.data.rows import Rows
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
RELEASES = ("cifar10", "celeba", "artbench")
MARK_COLUMNS = ("noai", "noimageai")
SPLITS = ("train", "heldout")  # a split column with any other value is ignored, and data.holdout decides
_COLUMNS = {
    "label": ("label", "labels", "class", "style", "genre"),
    "caption": ("caption", "text", "title"),
    "creator": ("creator", "artist", "author"),
    "licence": ("licence", "license"),
    "split": ("split",),
}


def read_source(study: Study) -> Iterator[Item]:
    """The items of a study's data in a fixed order, with undecoded images.

    Raises:
        DtrakError: the source is missing, empty or damaged, or has no image column.
    """
    data = study.data
    parts = [("train" if data.heldout_split else None, data.split, data.train_size)]
    if data.heldout_split:
        parts.append(("heldout", data.heldout_split, data.heldout_size))
    with tempfile.TemporaryDirectory(prefix="dtrak-") as cache:
        for split, name, size in parts:
            rows = _open(study, name, cache)
            for number in rows.chosen(data.include, size, data.split_seed, data.stratify, data.exclude):
                item = rows.read(number)
                template = data.caption_template
                if template and (item.label is not None or "{label}" not in template):
                    said = template.format(label=(item.label or "").replace("_", " ").lower())
                    item = replace(item, caption=said)
                yield replace(
                    item,
                    split=split or item.split,
                    creator=item.creator or data.creator or "",
                    licence=item.licence or data.licence or "",
                )


def listing(study: Study) -> dict[str, Any]:
    """The number of files of a local source and a digest of their names and sizes; empty for other sources."""
    if not study.data.path:
        return {}
    path = study.resolve(study.data.path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return {"files": len(files), "digest": digest([[p.name, p.stat().st_size] for p in files])} if files else {}


def _open(study: Study, split: str, cache: str) -> Rows:
    data = study.data
    if data.kind in RELEASES and data.path:
        path = study.resolve(data.path)
        if path.exists() or not data.hub:
            return release_rows(data, path, split)
    return _table_rows(_load(study, split, cache), split, data, study)


def _load(study: Study, split: str, cache: str) -> Any:
    data = study.data
    hub = data.hub or data.path if data.kind in (*RELEASES, "hub") else None
    if not hub:
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # a local folder never needs the network
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    path = study.resolve(data.path or ".")
    try:
        if data.kind == "imagefolder":
            if not path.is_dir():
                raise DtrakError(f"The folder {path} does not exist.", hint="data.path is relative to the YAML file.")
            return datasets.load_dataset("imagefolder", data_dir=str(path), split=split, cache_dir=cache)
        if data.kind == "parquet":
            found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
            if not found or not found[0].exists():
                raise DtrakError(f"There is no Parquet file at {path}.", hint="data.path is relative to the YAML file.")
            return datasets.load_dataset("parquet", data_files=[str(f) for f in found], split=split, cache_dir=cache)
        return datasets.load_dataset(hub, data.config_name, split=split)
    except DtrakError:
        raise
    except Exception as error:  # datasets raises many types, all caused by the source
        raise DtrakError(
            f"Could not read the data at {data.path}: {error}",
            hint="An image folder contains images, optionally in one sub-folder per label, and optionally a "
            "metadata.csv with a file_name column.",
        ) from error


def _table_rows(table: Any, split: str, data: DataConfig, study: Study) -> Rows:
    import datasets

    wanted = [data.image_column] if data.image_column else list(IMAGE_COLUMNS)
    image_column = next((c for c in wanted if c in table.column_names), None)
    if image_column is None:
        raise DtrakError(
            f"The data have no column '{wanted[0]}'. Columns: {', '.join(table.column_names)}.",
            hint="Set data.image_column.",
        )
    table = table.cast_column(image_column, datasets.Image(decode=False))
    columns = {
        field: getattr(data, f"{field}_column", None) or next((c for c in names if c in table.column_names), None)
        for field, names in _COLUMNS.items()
    }
    for field, column in [*columns.items(), ("id", data.id_column)]:
        if column and column not in table.column_names:
            raise DtrakError(
                f"The data have no column '{column}'. Columns: {', '.join(table.column_names)}.",
                hint=f"Correct data.{field}_column.",
            )
    if columns["split"] and not set(table[columns["split"]]) <= set(SPLITS):
        columns["split"] = None
    marks = next((c for c in MARK_COLUMNS if c in table.column_names), None)
    root = study.resolve(data.path or ".")
    label = columns["label"]
    labels = [_text(table, label, value) for value in table[label]] if label else [None] * len(table)

    def read(number: int) -> Item:
        row = table[number]
        image = row[image_column]
        values = {field: _text(table, column, row[column]) if column else None for field, column in columns.items()}
        return Item(
            id=_identify(row, number, image["path"], split, data, root),
            image=_read(image),
            label=values["label"],
            caption=values["caption"] or caption_beside(image["path"] if data.kind == "imagefolder" else None),
            creator=values["creator"] or "",
            licence=values["licence"] or "",
            split=values["split"],
            opted_out=bool(marks) and str(row[marks]).strip().lower() in ("1", "1.0", "true", "yes", "y"),
        )

    return Rows(labels, read)


def _read(image: dict[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except OSError:
        return b""


def _identify(row: dict[str, Any], number: int, path: str | None, split: str, data: DataConfig, root: Path) -> str:
    if data.id_column:
        return str(row[data.id_column])
    if data.kind == "imagefolder" and path:
        return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else Path(path).name
    return f"{split}/{number:05d}" if data.heldout_split else f"{number:06d}"


def _text(table: Any, column: str, value: Any) -> str | None:
    names = getattr(table.features[column], "names", None)
    if value is None:
        return None
    return names[value] if names and isinstance(value, int) and value >= 0 else str(value)
