"""Draw the demo's pictures from the icon sets that npm carries: faces for the study, everything else for its base.

    python scripts/draw_faces.py SETS OUT

SETS holds the unpacked packages ``@iconify-json/<set>`` (``npm pack`` fetches them; scripts/fetch_icons.sh does so).
OUT gets ``faces.parquet`` and ``base.parquet``: id, image (lossless WebP, 64×64 on white), label (style),
caption, creator, licence, url, expression (the drawing's name) and split: a hundred faces are held out, drawn by a
fixed seed in proportion to the styles; ``unrelated.parquet``, 256 drawings of the base for the significance test; and
``more.parquet``, those hundred faces as the data of a study of its own, 16 of them held out. Needs resvg-py.
"""

import argparse
import io
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

DRAWN, SIDE, MARGIN = 256, 64, 0.06  # pixels, pixels, and a share of the drawing's longer side
HELD_OUT, HELD_OUT_OF_THOSE, UNRELATED, SEED = 100, 16, 256, 0  # images
SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">{body}</svg>'
SKIN_TONES = ("-light", "-medium-light", "-medium", "-medium-dark", "-dark")


@dataclass(frozen=True)
class IconSet:
    """One set of icons, as its package and its makers describe it."""

    style: str
    creator: str
    licence: str


SETS = {
    "noto": IconSet("Noto", "Google", "Apache-2.0"),
    "noto-v1": IconSet("Blob", "Google", "Apache-2.0"),
    "twemoji": IconSet("Twemoji", "Twitter", "CC-BY-4.0"),
    "fluent-emoji": IconSet("Fluent", "Microsoft", "MIT"),
    "fluent-emoji-flat": IconSet("Fluent Flat", "Microsoft", "MIT"),
    "openmoji": IconSet("OpenMoji", "OpenMoji", "CC-BY-SA-4.0"),
    "emojione": IconSet("EmojiOne", "EmojiOne", "CC-BY-4.0"),
    "emojione-v1": IconSet("EmojiOne Classic", "EmojiOne", "CC-BY-SA-4.0"),
    "fxemoji": IconSet("Firefox", "Mozilla", "Apache-2.0"),
}

_FACES = """
    angry-face angry-face-with-horns anguished-face anxious-face-with-sweat astonished-face
    beaming-face-with-smiling-eyes clown-face cold-face confounded-face confused-face cowboy-hat-face crying-face
    disappointed-face disguised-face distorted-face dizzy-face dotted-line-face downcast-face-with-sweat drooling-face
    enraged-face exploding-head expressionless-face face-blowing-a-kiss face-exhaling face-holding-back-tears
    face-in-clouds face-savoring-food face-screaming-in-fear face-vomiting face-with-bags-under-eyes
    face-with-crossed-out-eyes face-with-diagonal-mouth face-with-hand-over-mouth face-with-head-bandage
    face-with-medical-mask face-with-monocle face-with-open-eyes-and-hand-over-mouth face-with-open-mouth
    face-with-peeking-eye face-with-raised-eyebrow face-with-rolling-eyes face-with-spiral-eyes
    face-with-steam-from-nose face-with-symbols-on-mouth face-with-tears-of-joy face-with-thermometer
    face-with-tongue face-without-mouth fearful-face flushed-face frowning-face frowning-face-with-open-mouth
    grimacing-face grinning-face grinning-face-with-big-eyes grinning-face-with-smiling-eyes grinning-face-with-sweat
    grinning-squinting-face head-shaking-horizontally head-shaking-vertically hot-face hugging-face hushed-face
    kissing-face kissing-face-with-closed-eyes kissing-face-with-smiling-eyes knocked-out-face loudly-crying-face
    lying-face melting-face money-mouth-face nauseated-face nerd-face neutral-face partying-face pensive-face
    persevering-face pleading-face pouting-face relieved-face rolling-on-the-floor-laughing sad-but-relieved-face
    saluting-face shaking-face shushing-face sleeping-face sleepy-face slightly-frowning-face slightly-smiling-face
    smiling-face smiling-face-with-halo smiling-face-with-heart-eyes smiling-face-with-hearts smiling-face-with-horns
    smiling-face-with-smiling-eyes smiling-face-with-sunglasses smiling-face-with-tear smirking-face sneezing-face
    squinting-face-with-tongue star-struck thinking-face tired-face unamused-face upside-down-face weary-face
    winking-face winking-face-with-tongue woozy-face worried-face yawning-face zany-face zipper-mouth-face
    annoyed-face-with-tongue dejected-face exhausted-face incredulous-face cracking-face
"""  # the last line: OpenMoji's own
FACES = frozenset(_FACES.split())
SAME = {  # one name where sets differ
    "smiling-face-with-open-hands": "hugging-face",
    "enraged-face": "pouting-face",
    "face-with-crossed-out-eyes": "knocked-out-face",
    "dizzy-face": "knocked-out-face",
}
FIREFOX = {  # Mozilla's names for what the others draw too
    "angry": "angry-face", "anguish": "anguished-face", "astonished": "astonished-face",
    "coldsweat": "anxious-face-with-sweat", "confounded": "confounded-face", "confused": "confused-face",
    "crying": "crying-face", "disappointed": "disappointed-face", "dissapointedrelief": "sad-but-relieved-face",
    "dizzyface": "knocked-out-face", "expressionless": "expressionless-face", "fearful": "fearful-face",
    "flushed": "flushed-face", "frownmouth": "frowning-face-with-open-mouth",
    "grimacing": "grimacing-face", "grin": "grinning-face", "grineyes": "beaming-face-with-smiling-eyes",
    "grinsquint": "grinning-squinting-face", "grinsweat": "grinning-face-with-sweat",
    "grintears": "face-with-tears-of-joy", "grinwide": "grinning-face-with-big-eyes",
    "grinwideeyes": "grinning-face-with-smiling-eyes", "halo": "smiling-face-with-halo",
    "hearteyes": "smiling-face-with-heart-eyes", "hushed": "hushed-face", "imp": "angry-face-with-horns",
    "devilhorns": "smiling-face-with-horns", "kiss": "kissing-face",
    "kissclosedeyes": "kissing-face-with-closed-eyes", "kisseyes": "kissing-face-with-smiling-eyes",
    "kissing": "face-blowing-a-kiss", "loudlycrying": "loudly-crying-face", "medicalmask": "face-with-medical-mask",
    "neutral": "neutral-face", "nomouth": "face-without-mouth", "openmouth": "face-with-open-mouth",
    "pensive": "pensive-face", "perservere": "persevering-face", "pouting": "pouting-face", "relieved": "relieved-face",
    "screamfear": "face-screaming-in-fear", "sleeping": "sleeping-face", "sleepy": "sleepy-face",
    "smallfrown": "slightly-frowning-face", "smallsmile": "slightly-smiling-face",
    "smileeyes": "smiling-face-with-smiling-eyes", "smiletongue": "face-savoring-food", "smirk": "smirking-face",
    "sunglasses": "smiling-face-with-sunglasses", "sweat": "downcast-face-with-sweat", "tired": "tired-face",
    "tongueout": "face-with-tongue", "tongueoutwink": "winking-face-with-tongue",
    "tongueoutwink2": "squinting-face-with-tongue", "triumph": "face-with-steam-from-nose",
    "unamused": "unamused-face", "weary": "weary-face", "whitesmilingface": "smiling-face",
    "winking": "winking-face", "worried": "worried-face", "blackmissingsmiley": "smiling-face",
}  # fmt: skip


def plain_name(icon_set: str, name: str, toned: frozenset[str]) -> str | None:
    """The drawing's name in the words all sets share; None for flags and skin tones."""
    if icon_set == "fxemoji":
        return FIREFOX.get(name, name)
    if name.startswith(("flag-", "regional-indicator")) or "skin-tone" in name or name in toned:
        return None
    return SAME.get(name, name)


def toned_names(names: list[str]) -> frozenset[str]:
    """Names such as ``cook-medium-dark`` of sets that have every tone of a drawing."""
    known = set(names)
    stems = {n.removesuffix("-medium-dark") for n in names if n.endswith("-medium-dark")}
    return frozenset(s + tone for s in stems for tone in SKIN_TONES) & known


def draw(svg: str) -> bytes | None:
    """A drawing cropped with a margin, as a lossless WebP of 64×64 on white; None if nothing is drawn."""
    raw = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN))
    image = Image.open(io.BytesIO(raw)).convert("RGBA")
    box = image.getchannel("A").point([255 * (a > 8) for a in range(256)]).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    side = round(max(right - left, bottom - top) * (1 + 2 * MARGIN))
    square = Image.new("RGBA", (side, side), "white")
    corner = ((side - right + left) // 2, (side - bottom + top) // 2)
    square.alpha_composite(image.crop(box), corner)
    out = io.BytesIO()
    square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(
        out, "WEBP", lossless=True, quality=75, method=4
    )
    return out.getvalue()


def read_set(folder: Path, key: str) -> list[dict[str, Any]]:
    """The rows of one set, with the SVG in place of the picture.

    Raises:
        ValueError: the package states another licence than this file does.
    """
    about = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    known = SETS[key]
    if about["license"]["spdx"] != known.licence:
        raise ValueError(f"{key} states {about['license']['spdx']}, expected {known.licence}; check before using it.")
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    width, height = icons.get("width", 16), icons.get("height", 16)
    toned = toned_names(list(icons["icons"]))
    rows = []
    for name, icon in sorted(icons["icons"].items()):
        plain = plain_name(key, name, toned)
        if plain is None:
            continue
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon.get('width', width)} {icon.get('height', height)}"
        svg = SVG.format(box=box, body=icon["body"])
        words = plain.replace("-", " ")
        rows.append({
            "id": f"{key}/{name}", "image": svg, "label": known.style, "caption": f"{words}, {known.style}",
            "creator": known.creator, "licence": known.licence, "url": about["author"]["url"], "expression": words,
            "face": plain in FACES,
        })  # fmt: skip
    return rows


def held_out(rows: list[dict[str, Any]], count: int) -> set[str]:
    """Ids of the ``count`` held-out rows, each style's share of them drawn without replacement."""
    random = np.random.default_rng(SEED)
    styles: dict[str, list[str]] = {}
    for row in rows:
        styles.setdefault(row["label"], []).append(row["id"])
    exact = {style: count * len(ids) / len(rows) for style, ids in styles.items()}
    counts = {style: int(share) for style, share in exact.items()}
    for style in sorted(exact, key=lambda s: counts[s] - exact[s])[: count - sum(counts.values())]:
        counts[style] += 1
    return {str(i) for style, ids in styles.items() for i in random.choice(ids, counts[style], replace=False)}


def write(path: Path, rows: list[dict[str, Any]], held: set[str]) -> None:
    """Write a study's images as a Parquet file, with their split."""
    rows = [row | {"split": "heldout" if row["id"] in held else "train"} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    print(f"{path.name}: {len(rows)} drawings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    rows = [row for key in SETS for row in read_set(arguments.sets / key, key)]
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(draw, [row["image"] for row in rows], chunksize=64))
    seen: set[bytes] = set()
    kept = []
    for row, picture in zip(rows, drawn, strict=True):
        if picture is None or np.asarray(Image.open(io.BytesIO(picture))).min() > 250 or picture in seen:
            continue
        seen.add(picture)
        kept.append(row | {"image": picture})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, faces in (("faces", True), ("base", False)):
        chosen = [{k: v for k, v in row.items() if k != "face"} for row in kept if row["face"] is faces]
        held = held_out(chosen, HELD_OUT) if faces else set()
        write(arguments.out / f"{name}.parquet", chosen, held)
        if faces:
            more = [row for row in chosen if row["id"] in held]
            write(arguments.out / "more.parquet", more, held_out(more, HELD_OUT_OF_THOSE))
    places = sorted(np.random.default_rng(SEED).choice(len(chosen), UNRELATED, replace=False).tolist())
    table = pa.Table.from_pylist([chosen[place] for place in places])
    columns = ["id", "image", "label", "caption", "creator", "licence", "url"]
    pq.write_table(table.select(columns), arguments.out / "unrelated.parquet", compression="zstd")


if __name__ == "__main__":
    main()
