"""Words as every page shows them. Quick to import."""

import re

from dtrak.data import Record


def describe(record: Record) -> str:
    """A training image in words, for those who cannot see it."""
    by = f", by {record.creator}" if record.creator else ""
    return f"Training image: {record.caption or record.id}{by}"


def plain(text: str) -> str:
    """Text as it stands, for where Markdown is read: a caption must not load a picture or make a link."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~$:])", r"\\\1", text)
