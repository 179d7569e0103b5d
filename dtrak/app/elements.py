"""Text shared by all pages; quick to import."""

import re

from dtrak.data import Record


def describe(record: Record) -> str:
    """The alternative text of a training image."""
    by = f", by {record.creator}" if record.creator else ""
    return f"Training image: {record.caption or record.id}{by}"


def plain(text: str) -> str:
    """Text with Markdown escaped, so that a caption cannot load an image or form a link."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~$:])", r"\\\1", text)
