"""One sample, as read from a source and as stored in a table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A sample from a source, with its undecoded image; ``split`` if the source defines it.

    ``opted_out``: whether a column "noai" says that it must not be used for training.
    """

    id: str
    image: bytes
    label: str | None = None
    caption: str = ""
    creator: str = ""
    licence: str = ""
    split: str | None = None
    opted_out: bool = False


@dataclass(frozen=True)
class Record:
    """The metadata of a sample of a study; ``split`` is that of a feature set."""

    id: str
    label: str | None
    caption: str
    creator: str
    licence: str
    split: str
