"""One sample, as read from a source and as stored in a table; and the records of a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

UNKNOWN = "unknown"  # stands for no creator, no label
PART = 65_536  # records that become objects at once
MOST_PLACES = 1_000_000  # ids in a dictionary; more are searched for


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


COLUMNS = tuple(field.name for field in fields(Record))


class Records(Sequence[Record]):
    """Records in columns: an object is made of a record only when it is asked for, so that millions cost little.

    Args:
        table: with the columns of :class:`Record`.
    """

    def __init__(self, table: pa.Table):
        self._table = table.select(COLUMNS)

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Records":
        """From objects."""
        columns = {name: pa.array([getattr(r, name) for r in records], pa.string()) for name in COLUMNS}
        return cls(pa.table(columns))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> "Records": ...

    def __getitem__(self, place: int | slice) -> "Record | Records":
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                return Records(self._table.take(pa.array(range(start, stop, step), pa.int64())))
            return Records(self._table.slice(start, max(stop - start, 0)))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        row = int(place) % len(self)
        return Record(**{name: self._table[name][row].as_py() for name in COLUMNS})

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), PART):
            for row in self._table.slice(start, PART).to_pylist():
                yield Record(**row)

    def take(self, rows: Int[np.ndarray, " r"]) -> "Records":
        """Some of the records, in this order."""
        return Records(self._table.take(pa.array(rows)))

    def column(self, name: str) -> list[str | None]:
        """One attribute of all records; equal values are one object."""
        found: list[str | None] = []
        for chunk in self._table[name].chunks:
            if not pa.types.is_dictionary(chunk.type):
                chunk = chunk.dictionary_encode()
            values = [*chunk.dictionary.to_pylist(), None]
            found += [values[i] for i in chunk.indices.fill_null(len(values) - 1).to_pylist()]
        return found

    def grouped(self, name: str) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
        """The distinct values of an attribute, sorted, and each record's place among them; ``UNKNOWN`` for none."""
        encoded = self._table[name]
        if not pa.types.is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        encoded = encoded.unify_dictionaries().combine_chunks()
        values = np.array([value or UNKNOWN for value in [*encoded.dictionary.to_pylist(), None]])
        codes = encoded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
        present, codes = np.unique(codes, return_inverse=True)
        names, merged = np.unique(values[present], return_inverse=True)
        return tuple(names.tolist()), merged[codes]

    def distinct(self, name: str) -> list[str]:
        """The distinct values of an attribute, sorted, without None."""
        return sorted(value for value in pc.unique(self._table[name]).to_pylist() if value is not None)

    def count_of(self, name: str, value: str) -> int:
        """How many records have a value of an attribute."""
        return int(pc.sum(pc.equal(self._table[name], value)).as_py() or 0)

    def place(self, sample_id: str) -> int:
        """The row of an id; −1 if there is none."""
        return int(pc.index(self._table["id"], sample_id).as_py())

    def places(self, ids: Sequence[str]) -> list[int]:
        """The rows of many ids at once; −1 where there is none."""
        found = pc.index_in(pa.array(ids, pa.string()), value_set=self._table["id"].combine_chunks())
        return found.fill_null(-1).to_pylist()


class Places(Mapping[str, int]):
    """Row number by id: from a dictionary, or, among more than ``MOST_PLACES`` ids, found by a search."""

    def __init__(self, records: Records):
        self._records = records
        self._search = lru_cache(4096)(records.place)

    def __getitem__(self, sample_id: str) -> int:
        if len(self._records) <= MOST_PLACES:
            return self._known[sample_id]
        found = self._search(sample_id)
        if found < 0:
            raise KeyError(sample_id)
        return found

    def many(self, ids: Sequence[str]) -> list[int]:
        """The rows of many ids.

        Raises:
            KeyError: one is not there.
        """
        found = self._records.places(ids)
        if -1 in found:
            raise KeyError(ids[found.index(-1)])
        return found

    def __iter__(self) -> Iterator[str]:
        return (name or "" for name in self._records.column("id"))

    def __len__(self) -> int:
        return len(self._records)

    @cached_property
    def _known(self) -> dict[str | None, int]:
        return {sample_id: row for row, sample_id in enumerate(self._records.column("id"))}
