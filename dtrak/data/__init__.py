"""Training sets: read from many sources, validated, and stored as one table per study."""

from dtrak.data.images import BadImage, open_image, to_model_pixels
from dtrak.data.records import Item, Record, Records
from dtrak.data.rows import drawn
from dtrak.data.sources import read_source
from dtrak.data.table import PrepareReport, Table, load_table, model_pixels, prepare

__all__ = [
    "BadImage",
    "Item",
    "PrepareReport",
    "Record",
    "Records",
    "Table",
    "drawn",
    "load_table",
    "model_pixels",
    "open_image",
    "prepare",
    "read_source",
    "to_model_pixels",
]
