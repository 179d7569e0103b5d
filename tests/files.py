"""Image files, whole and hostile."""

import io
import struct

from PIL import Image


def encoded(image, kind="PNG", **options):
    """An image as a file of some format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb():
    """A PNG of a few bytes that says that it is enormous."""
    content = bytearray(encoded(Image.new("RGB", (1, 1))))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    return bytes(content)


def damaged(content, flips, start, stop, how):
    """A file with bytes replaced, then the piece from ``start`` to ``stop`` removed or repeated, or its end cut off.

    Args:
        flips: pairs (place, byte).
        how: "keep", "remove", "repeat" or "cut".
    """
    content = bytearray(content)
    for place, byte in flips:
        content[place] = byte
    if how == "remove":
        del content[start:stop]
    elif how == "repeat":
        content[start:start] = content[start:stop]
    elif how == "cut":
        del content[start:]
    return bytes(content)
