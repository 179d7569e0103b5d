"""Images that no training image shaped: the null of the significance test.

Four kinds, told apart because a test must hold against each: drawings of objects that dtrak ships, training
images with their pixels shuffled, uniform noise, and flat colours. Each is conditioned on the label or caption
of a random training image, so that what a condition alone contributes is part of the null.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from dtrak.config import ROOT, Study
from dtrak.data.images import open_image
from dtrak.data.records import Record, Records
from dtrak.data.table import Table, model_pixels
from dtrak.utils.errors import DtrakError
from dtrak.utils.noise import keyed_generator

DRAWINGS = "drawing"
KINDS = (DRAWINGS, "shuffled", "noise", "flat")
NAMES = {
    "drawing": "drawings of objects", "shuffled": "training images with shuffled pixels",
    "noise": "images of noise", "flat": "flat colours",
}  # fmt: skip
FILE = ROOT / "assets" / "unrelated.parquet"
VERSION = 1  # raise it whenever the images below change


def unrelated_images(study: Study, table: Table) -> Table:
    """The study's unrelated images as a table without training rows; ids are "unrelated:KIND:NUMBER".

    Raises:
        DtrakError: ``unrelated.path`` has too few images.
    """
    rows, pixels = [], _drawings(study)
    kinds = kinds_of(study)
    for place, kind in enumerate(kinds):
        number = place - kinds.index(kind)
        random = keyed_generator("unrelated", VERSION, kind, number)
        told = table.records[int(random.integers(table.train_size))]
        rows.append(Record(f"unrelated:{kind}:{number}", told.label, told.caption, "", "", "unrelated"))
        if kind != DRAWINGS:
            pixels.append(_made(kind, table, random))
    return Table(Path(), Records.of(rows), np.stack(pixels), table.captioned)


def kinds_of(study: Study) -> list[str]:
    """The kind of each of the study's unrelated images."""
    config = study.unrelated
    return [kind for kind in KINDS for _ in range(config.drawings if kind == DRAWINGS else config.count)]


def _made(kind: str, table: Table, random: np.random.Generator) -> UInt8[np.ndarray, "r r 3"]:
    shape = table.pixels.shape[1:]
    if kind == "noise":
        return random.integers(0, 256, shape, np.uint8)
    if kind == "flat":
        return np.broadcast_to(random.integers(0, 256, 3, np.uint8), shape).copy()
    image = np.asarray(table.pixels[int(random.integers(table.train_size))])
    return random.permutation(image.reshape(-1, 3)).reshape(shape)


def _drawings(study: Study) -> list[UInt8[np.ndarray, "r r 3"]]:
    config = study.unrelated
    if config.path is None:
        files = pq.read_table(FILE, columns=["image"])["image"].to_pylist()[: config.drawings]
        return [model_pixels(study, Image.open(io.BytesIO(file))) for file in files]
    folder = study.resolve(config.path)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    if len(found) < config.drawings:
        raise DtrakError(
            f"There are {len(found)} images in {config.path}; the significance test needs {config.drawings}.",
            hint="Add images, or lower unrelated.drawings.",
        )
    return [model_pixels(study, open_image(p.read_bytes(), study.data.max_pixels)) for p in found[: config.drawings]]
