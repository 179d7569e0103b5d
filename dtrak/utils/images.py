"""Images as PNG and as data URLs."""

import base64
import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtrak.utils.files import atomic_write

TILE = 128  # tile size, pixels
SMOOTH = 48  # images at least this wide are enlarged smoothly


def data_url(pixels: UInt8[np.ndarray, "r r 3"], size: int = TILE) -> str:
    """An image as a PNG data URL; small images are enlarged."""
    return png_url(enlarged_png(pixels, size))


def png_url(content: bytes) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def enlarged_file(path: Path, size: int = TILE) -> bytes:
    """:func:`enlarged_png` of an image file."""
    with Image.open(path) as image:
        return enlarged_png(np.asarray(image.convert("RGB")), size)


def enlarged_png(pixels: UInt8[np.ndarray, "r r 3"], size: int = TILE) -> bytes:
    """A PNG at least ``size`` pixels wide: smaller ones enlarged by an integer factor, tiny ones without blurring."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.width < size:
        image = image.resize(
            (image.width * -(-size // image.width),) * 2,
            Image.Resampling.NEAREST if image.width < SMOOTH else Image.Resampling.LANCZOS,
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # half the time for a sixth more bytes, which stay on this machine
    return buffer.getvalue()


def write_png(path: Path, pixels: UInt8[np.ndarray, "r r 3"]) -> None:
    """Write a small PNG file, all of it or nothing."""
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
