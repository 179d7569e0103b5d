"""Text shared by all pages; quick to import."""

import re

from dtrak.data import Record
from dtrak.utils.errors import DtrakError

JOINER = "\u2060"  # invisible; joins words


def describe(record: Record) -> str:
    """The alternative text of a training image."""
    by = f", by {record.creator}" if record.creator else ""
    return f"Training image: {record.caption or record.id}{by}"


def explain(error: DtrakError) -> str:
    """An error and its way out, as Markdown that shows them literally."""
    return plain(f"{error.message} {error.hint or ''}".strip())


def plain(text: str) -> str:
    """Text with Markdown escaped, so that a caption cannot load an image or form a link.

    Everything from a URL, from data or from a configuration goes through here or :func:`explain` before Streamlit
    reads it as Markdown.
    """
    escaped = re.sub(r"([\\`*_{}\[\]()<>#+!|~$:])", r"\\\1", text)
    return re.sub(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?=@)", JOINER, escaped)  # bare addresses would become links
