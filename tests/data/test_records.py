"""Records in columns behave like a tuple of records, and few become objects."""

import numpy as np
import pytest

from dtrak.data import records as module
from dtrak.data.records import Places, Record, Records

RECORDS = [
    Record(f"r{i}", None if i % 3 == 0 else "ab"[i % 2], f"caption {i}", "" if i == 4 else "c", "CC0", "train")
    for i in range(10)
]


@pytest.fixture
def records():
    return Records.of(RECORDS)


def test_they_are_a_sequence(records):
    assert list(records) == RECORDS
    assert len(records) == 10
    assert [records[i] for i in (0, 9, -1, np.int64(3))] == [RECORDS[i] for i in (0, 9, -1, 3)]
    for part in (slice(2, 5), slice(None, -3), slice(7, 2), slice(1, None, 3), slice(None, None, -2)):
        assert list(records[part]) == RECORDS[part]
    assert list(records[2:8][1:3]) == RECORDS[3:5]
    for place in (10, -11):
        with pytest.raises(IndexError):
            records[place]
    assert list(Records.of([])) == list(records[5:5:2]) == list(Records.of([])[::-1]) == []


def test_columns(records):
    assert records.column("label") == [r.label for r in RECORDS]
    assert records.distinct("label") == ["a", "b"]
    assert records.count_of("label", "a") == sum(r.label == "a" for r in RECORDS)
    assert records[3:].column("id") == [r.id for r in RECORDS[3:]]


def test_values_are_grouped(records):
    names, codes = records.grouped("label")
    assert names == ("a", "b", "unknown")
    assert [names[code] for code in codes] == [r.label or "unknown" for r in RECORDS]
    names, codes = records[1:3].grouped("label")  # values that do not occur are no groups
    assert [names[code] for code in codes] == ["b", "a"]
    assert Records.of([]).grouped("label")[0] == ()


@pytest.mark.parametrize("most", [0, 1000])
def test_places_are_found_in_a_dictionary_and_by_a_search(records, monkeypatch, most):
    monkeypatch.setattr(module, "MOST_PLACES", most)
    places = Places(records)
    assert {name: places[name] for name in places} == {r.id: i for i, r in enumerate(RECORDS)}
    assert "r3" in places
    assert "nobody" not in places
    assert places.get("nobody", -1) == -1
    assert places.many(["r7", "r0"]) == [7, 0]
    for lookup in (lambda: places["nobody"], lambda: places.many(["r1", "nobody"])):
        with pytest.raises(KeyError):
            lookup()
