"""The progress of a running build, as the app reads it."""

import time

import pytest

from dtrak.build.status import NOTE, building, building_note
from dtrak.utils.files import write_json


def test_a_running_build_is_seen_and_a_finished_one_is_not(fresh, monkeypatch):
    monkeypatch.setattr("dtrak.build.status.NOTE_EVERY", 0.0)
    assert building(fresh) is None
    with building_note(fresh) as note:
        note("index", 2, 12)
        assert building(fresh).seconds_left is None
        time.sleep(0.02)
        note("index", 4, 12)
        found = building(fresh)
        assert (found.done, found.total) == (4, 12)
        assert found.seconds_left == pytest.approx(0.08, abs=0.2)
        assert "Computing index: 4 of 12 parts, about" in found.text
    assert building(fresh) is None


def test_the_note_of_a_killed_build_goes_stale(fresh):
    content = {"part": "index", "done": 1, "total": 2, "seconds_left": None, "at": time.time() - 1000}
    write_json(fresh.root / NOTE, content)
    assert building(fresh) is None
    (fresh.root / NOTE).write_text("{")
    assert building(fresh) is None
