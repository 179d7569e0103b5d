"""Training sets: read from anywhere, checked, and kept as one table per study."""

from dtrak.data.images import BadImage, open_image, to_model_pixels
from dtrak.data.records import Item, Record
from dtrak.data.sources import read_source
from dtrak.data.table import PrepareReport, Table, load_table, prepare

__all__ = [
    "BadImage",
    "Item",
    "PrepareReport",
    "Record",
    "Table",
    "load_table",
    "open_image",
    "prepare",
    "read_source",
    "to_model_pixels",
]
