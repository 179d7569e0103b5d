"""What a source yields and what a table holds, one training sample at a time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One image as its source gave it, undecoded; ``split`` where the source says it."""

    id: str
    image: bytes
    label: str | None = None
    caption: str = ""
    creator: str = ""
    licence: str = ""
    split: str | None = None


@dataclass(frozen=True)
class Record:
    """What is known of one sample of a study; ``split`` is "train" or "heldout"."""

    id: str
    label: str | None
    caption: str
    creator: str
    licence: str
    split: str
