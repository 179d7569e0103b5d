"""Reading CIFAR-10, CelebA and ArtBench from the archives in which they are distributed.

Row numbers equal those of the data sets that the paper indexes, so that its draws can be reproduced:
CIFAR-10 in the order of the Hugging Face copy, which reads batches 4, 3, 2, 5, 1 in archive order;
CelebA by file number; ArtBench by the row of ``ArtBench-10.csv``.
"""

import csv
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dtrak.config import DataConfig
from dtrak.data.files import Files
from dtrak.data.records import Item
from dtrak.data.rows import Rows
from dtrak.utils.errors import DtrakError

CIFAR_BATCHES = {"train": [f"data_batch_{i}" for i in (4, 3, 2, 5, 1)], "test": ["test_batch"]}
CIFAR_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: label, then pixels
PLAIN = {  # the globals that a pickle of NumPy arrays needs
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
CELEBA_SPLITS = {"train": "0", "valid": "1", "test": "2"}


def release_rows(data: DataConfig, path: Path, split: str) -> Rows:
    """The rows of a split of a release.

    Args:
        path: CIFAR-10's archive or unpacked folder; CelebA's folder; the folder or archive of
            ArtBench's images, with its CSV file inside or beside it.

    Raises:
        DtrakError: a file is missing, damaged or malformed, or there is no such split.
    """
    splits: dict[str, Sequence[str]] = {
        "cifar10": list(CIFAR_BATCHES),
        "celeba": list(CELEBA_SPLITS),
        "artbench": ["train", "test"],
    }
    known = splits[data.kind]
    if split not in known:
        raise DtrakError(f"{data.kind} has no split '{split}'.", hint=f"Splits: {', '.join(known)}.")
    reader = {"cifar10": _cifar10, "celeba": _celeba, "artbench": _artbench}[data.kind]
    return reader(path, split, data.md5)


def _cifar10(path: Path, split: str, md5: Sequence[str]) -> Rows:
    files = Files(path, md5)
    batches = [_cifar_batch(files, name) for name in CIFAR_BATCHES[split]]
    labels = np.concatenate([b[0] for b in batches])
    pixels = np.concatenate([b[1] for b in batches])

    def read(row: int) -> Item:
        label = CIFAR_LABELS[labels[row]]
        return Item(f"{split}/{row:05d}", _png(pixels[row]), label, f"{label} {row}")

    return Rows([CIFAR_LABELS[i] for i in labels], read)


def _cifar_batch(files: Files, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and pixels [n, 32, 32, 3] of one batch, in the binary or the Python version."""
    if files.has(f"{name}.bin"):
        content = files.read(f"{name}.bin")
        if not content or len(content) % CIFAR_RECORD:
            raise _malformed(files, f"{name}.bin")
        records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
        labels, planes = records[:, 0].astype(np.int64), records[:, 1:]
    else:
        try:
            batch = PlainUnpickler(io.BytesIO(files.read(name))).load()
            labels, planes = np.asarray(batch[b"labels"], np.int64), np.asarray(batch[b"data"], np.uint8)
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError) as error:
            raise _malformed(files, name) from error
    if planes.shape != (len(labels), CIFAR_RECORD - 1) or labels.min() < 0 or labels.max() >= len(CIFAR_LABELS):
        raise _malformed(files, name)
    return labels, planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class PlainUnpickler(pickle.Unpickler):
    """A safe unpickler: reads NumPy arrays, bytes, str, int, list and dict, and rejects all other globals."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"the global {module}.{name} is not allowed")
        return super().find_class(module, name)


def _celeba(path: Path, split: str, md5: Sequence[str]) -> Rows:
    files = Files(path)
    archive = path / "img_align_celeba.zip"
    images = Files(archive, md5) if archive.exists() else files
    partition = [line.split() for line in files.read("list_eval_partition.txt").decode().splitlines() if line.strip()]
    lines = files.read("list_attr_celeba.txt").decode().splitlines()
    if len(lines) < 2 or any(len(line) != 2 for line in partition):
        raise _malformed(files, "list_attr_celeba.txt or list_eval_partition.txt")
    names = lines[1].split()
    attributes = {line.split()[0]: line.split()[1:] for line in lines[2:] if line.strip()}
    chosen = [name for name, part in partition if part == CELEBA_SPLITS[split]]

    def read(row: int) -> Item:
        name = chosen[row]
        said = [n.replace("_", " ") for n, value in zip(names, attributes.get(name, []), strict=False) if value == "1"]
        return Item(name, images.read(name), caption=", ".join(said))

    return Rows([None] * len(chosen), read)


def _artbench(path: Path, split: str, md5: Sequence[str]) -> Rows:
    images = Files(path, md5)
    beside = path.parent / "ArtBench-10.csv"
    text = beside.read_bytes() if beside.is_file() else images.read("ArtBench-10.csv")
    table = list(csv.DictReader(io.StringIO(text.decode())))
    if not table or not {"name", "label", "split"} <= table[0].keys():
        raise _malformed(images, "ArtBench-10.csv")
    chosen = [(number, row) for number, row in enumerate(table) if row["split"] == split]

    def read(place: int) -> Item:
        number, row = chosen[place]
        artist = row.get("artist", "").replace("-", " ").title()
        return Item(
            f"{number:05d}", images.read(f"{row['label']}/{row['name']}"), row["label"], row["name"], creator=artist
        )

    return Rows([row["label"] for _, row in chosen], read)


def _malformed(files: Files, name: str) -> DtrakError:
    return DtrakError(f"'{name}' in {files.path} is malformed.", hint="Download the data set again.")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
