"""Captions beside images: ``metadata.csv``, or a text file of the same name, as trainers of LoRAs write them."""

import csv
from pathlib import Path

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
COLUMNS = ("caption", "text", "title")
LONGEST = 10_000  # characters


def caption_beside(image: str | Path | None) -> str:
    """The text of ``NAME.txt`` or ``NAME.caption`` beside ``NAME.png``, in one line; empty if there is none."""
    if image is None:
        return ""
    for suffix in (".txt", ".caption"):
        path = Path(image).with_suffix(suffix)
        try:
            return " ".join(path.read_text(encoding="utf-8-sig", errors="replace")[:LONGEST].split())
        except OSError:
            continue
    return ""


def captioned_images(folder: Path) -> tuple[int, int]:
    """How many images a folder and its sub-folders have, and how many of them have a caption."""
    images = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file()]
    told = set()
    for table in folder.rglob("metadata.csv"):
        with table.open(encoding="utf-8-sig", newline="", errors="replace") as file:
            for row in csv.DictReader(file):
                if row.get("file_name") and any(row.get(column) for column in COLUMNS):
                    told.add((table.parent / row["file_name"]).resolve())
    return len(images), sum(path.resolve() in told or bool(caption_beside(path)) for path in images)
