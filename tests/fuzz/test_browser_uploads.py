"""Hostile uploads: each is refused with a reason or attributed, and the page stays whole.

The suite tries a few files; ``make fuzz`` (DTRAK_FUZZ=N) tries N, at most 300.
"""

import os

import numpy as np
import pytest
from PIL import Image

from tests.browser import generate, settle, top_tile, visit
from tests.conftest import drawn_image
from tests.files import bomb, damaged, encoded

COUNT = min(int(os.environ.get("DTRAK_FUZZ", "0")) or 6, 300)
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def special():
    """Files that are odd as they are: name and content."""
    small = drawn_image(3)
    return {
        "empty.png": b"",
        "bomb.png": bomb(),
        "![](http://127.0.0.9:9/a.png).png": b"# not a picture",
        "cmyk.jpg": encoded(small.convert("CMYK"), "JPEG"),
        "script.gif": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "sixteen.png": encoded(Image.fromarray(np.full((9, 5), 40_000, np.uint16))),
        "one.bmp": encoded(Image.new("1", (1, 1)), "BMP"),
        "moving.gif": encoded(small, "GIF", save_all=True, append_images=[drawn_image(4)] * 3),
        "thin.png": encoded(Image.new("RGBA", (1, 9000), (9, 9, 9, 0))),
    }


def broken(number):
    """A damaged picture: name and content."""
    kind = list(ENDINGS)[number % len(ENDINGS)]
    whole, random = encoded(drawn_image(number), kind), np.random.default_rng(number)
    places = random.integers(0, len(whole), random.integers(1, 9))
    flips = [(int(place), int(random.integers(256))) for place in places]
    start, stop = sorted(random.integers(0, len(whole), 2).tolist())
    return f"{number}.{ENDINGS[kind]}", damaged(whole, flips, start, stop, random.choice(["keep", "remove", "cut"]))


def uploads(count):
    """Hostile files, special and damaged ones in turn."""
    odd = iter(special().items())
    for number in range(count):
        one = next(odd, None) if number % 3 else None
        yield one or broken(number)


@pytest.mark.timeout(240 + 10 * COUNT)  # the tiny study may have to be built first
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
