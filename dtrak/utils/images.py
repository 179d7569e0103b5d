"""Images as PNG and as data URLs.

The pages show images as data URLs: a file that Streamlit keeps can be gone before a slow browser asks for it.
"""

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


def file_url(path: Path, size: int = TILE) -> str:
    """:func:`data_url` of an image file."""
    with Image.open(path) as image:
        return data_url(np.asarray(image.convert("RGB")), size)


def reduced_url(image: Image.Image, size: int) -> str:
    """An image of any shape as a PNG data URL, reduced to at most ``size`` pixels on a side."""
    reduced = image.copy()
    reduced.thumbnail((size, size))
    return png_url(_png(reduced))


def enlarged_png(pixels: UInt8[np.ndarray, "r r 3"], size: int = TILE) -> bytes:
    """A PNG at least ``size`` pixels wide: smaller ones enlarged by an integer factor, tiny ones without blurring."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.width < size:
        image = image.resize(
            (image.width * -(-size // image.width),) * 2,
            Image.Resampling.NEAREST if image.width < SMOOTH else Image.Resampling.LANCZOS,
        )
    return _png(image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # half the time for a sixth more bytes, which stay on this machine
    return buffer.getvalue()


def write_png(path: Path, pixels: UInt8[np.ndarray, "r r 3"]) -> None:
    """Write a small PNG file, all of it or nothing."""
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
