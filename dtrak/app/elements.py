"""What every page draws with: pictures as PNG, and words as they stand. Quick to import."""

import base64
import io
import re

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtrak.data import Record

TILE = 128  # pixels on the screen


def data_url(pixels: UInt8[np.ndarray, "r r 3"], size: int = TILE) -> str:
    """A picture as a data URL; small ones are enlarged without blurring."""
    return "data:image/png;base64," + base64.b64encode(enlarged_png(pixels, size)).decode()


def enlarged_png(pixels: UInt8[np.ndarray, "r r 3"], size: int = TILE) -> bytes:
    """A PNG of about ``size`` pixels; small images are enlarged by a whole factor, without blurring."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.width < size:
        image = image.resize((image.width * -(-size // image.width),) * 2, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def describe(record: Record) -> str:
    """A training image in words, for those who cannot see it."""
    by = f", by {record.creator}" if record.creator else ""
    return f"Training image: {record.caption or record.id}{by}"


def plain(text: str) -> str:
    """Text as it stands, for where Markdown is read: a caption must not load a picture or make a link."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~$:])", r"\\\1", text)
