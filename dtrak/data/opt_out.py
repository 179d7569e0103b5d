"""Marks by which rights holders say that an image must not be used for training.

Read are IPTC/PLUS "Data Mining" in XMP, CAWG training-mining assertions, and the words "noai" or "noimageai". Marks
are reported, not enforced: whether they bind depends on the licence and the country.
"""

import io
import re

from PIL import Image

PLUS = re.compile(r"DataMining[^<]*?(?:>|=\s*[\"'])\s*[^<\"']*?(DMI-PROHIBITED[A-Z-]*)", re.S)
CAWG = re.compile(
    rb"cawg\.(ai_generative_training|ai_training|data_mining)(?:(?!cawg\.).){0,200}?(notAllowed|constrained)", re.S
)
WORDS = re.compile(r"\b(noai|noimageai)\b", re.I)
MOST = 4 * 2**20  # bytes that are searched


def opt_out_mark(content: bytes) -> str:
    """The mark in an image file, in words; empty if there is none.

    Args:
        content: the file; damaged files have no mark.
    """
    if found := CAWG.search(content[:MOST]):
        return f"CAWG training-mining: {found[1].decode()} {found[2].decode()}"
    try:
        with Image.open(io.BytesIO(content)) as image:
            told = {str(key): _text(value) for key, value in image.info.items()}
    except Exception:  # Pillow raises many types for damaged files, which are refused elsewhere
        return ""
    for value in told.values():
        if found_text := PLUS.search(value):
            return f"PLUS Data Mining: {found_text[1]}"
    said = " ".join([*told, *told.values()])
    return f"the word {word[1].lower()}" if (word := WORDS.search(said[:MOST])) else ""


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)[:MOST]
