"""Hostile uploads: each is refused with a reason or attributed, and the page stays whole.

The suite tries a few files; ``make fuzz`` (DTRAK_FUZZ) tries 300.
"""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.browser import generate, settle, top_tile, visit
from tests.conftest import drawn_image

COUNT = 300 if os.environ.get("DTRAK_FUZZ") else 6
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _special():
    """Files that are odd as they are: (name, content)."""
    small = drawn_image(3)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    yield "empty.png", b""
    yield (
        "bomb.png",
        b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(10_000))) + _chunk(b"IEND", b""),
    )
    yield "script.gif", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    yield "![](http://127.0.0.9:9/a.png).png", b"# not a picture"
    yield "cmyk.jpg", _saved(small.convert("CMYK"), "JPEG")
    yield "sixteen.png", _saved(Image.fromarray(np.full((9, 5), 40_000, np.uint16)), "PNG")
    yield "one.bmp", _saved(Image.new("1", (1, 1)), "BMP")
    yield "moving.gif", _saved(small, "GIF", save_all=True, append_images=[drawn_image(4)] * 3)
    yield "thin.png", _saved(Image.new("RGBA", (1, 9000), (9, 9, 9, 0)), "PNG")


def uploads(count):
    """Hostile files: special ones, then real ones with flipped, missing or repeated bytes."""
    special = list(_special())
    yield from special[:count]
    random = np.random.default_rng(0)
    for number in range(count - len(special)):
        kind = list(ENDINGS)[number % len(ENDINGS)]
        content = bytearray(_saved(drawn_image(number), kind))
        for place in random.integers(0, len(content), random.integers(1, 9)):
            content[place] = random.integers(256)
        start, stop = sorted(random.integers(0, len(content), 2))
        how = random.integers(4)
        if how == 1:
            del content[start:stop]
        elif how == 2:
            content[start:start] = content[start:stop]
        elif how == 3:
            del content[start:]
        yield f"{number}.{ENDINGS[kind]}", bytes(content)


@pytest.mark.timeout(60 + 10 * COUNT)
def test_every_upload_is_refused_or_attributed(context, server):
    generate(context.new_page(), server, 60)
    page, counts = None, {"refused": 0, "attributed": 0}
    for name, content in uploads(COUNT):
        if page is None:
            page = visit(context.new_page(), f"{server}/attribution")
            page.get_by_text("Choose another image").click()
        page.locator("input[type=file]").set_input_files([{"name": name, "mimeType": "image/png", "buffer": content}])
        settle(page)
        shown = page.url
        page.get_by_role("button", name="Attribute this image").click()
        page.wait_for_function(
            "before => location.href != before || document.body.innerText.includes('This image cannot be used')",
            arg=shown, timeout=60_000,
        )  # fmt: skip
        settle(page)
        if page.url == shown:
            counts["refused"] += 1
        else:
            top_tile(page)
            counts["attributed"] += 1
            page.close()
            page = None
    assert min(counts.values()) > 0
    print(counts)
