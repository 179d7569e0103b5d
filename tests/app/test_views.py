"""What pages show, tested without pages."""

from pathlib import Path

import numpy as np
import pytest

from dtrak.app.figures import score_histogram, share_bars
from dtrak.app.views import default_power, effective_number, format_score, shares, tiles
from dtrak.data import Record, Table
from dtrak.methods.ranking import Ranking, Scored
from dtrak.methods.settings import Setting

RECORDS = [Record(str(i), "ab"[i % 2], f"picture {i}", f"artist {i // 2}", "CC0", "train") for i in range(4)]
SCORES = np.array([3.0, 1.0, -2.0, 0.0])


def ranking():
    table = Table(Path(), tuple(RECORDS), np.zeros((4, 2, 2, 3), np.uint8))
    return Ranking(Setting("dtrak"), 0.1, "f", table, SCORES)


def test_shares_are_of_positive_mass_and_sum_to_one():
    found = shares(RECORDS, SCORES, "creator")
    assert [(s.name, s.share, s.expected) for s in found] == [("artist 0", 1.0, 0.5), ("artist 1", 0.0, 0.5)]
    assert [s.share for s in shares(RECORDS, SCORES, "label")] == [0.75, 0.25]


def test_effective_number():
    assert effective_number(np.array([1.0, 1.0, 1.0, -5.0])) == pytest.approx(3)
    assert effective_number(np.array([-1.0])) == 0


def test_scores_are_signed():
    assert format_score(0.01234) == "+0.0123"
    assert format_score(-2.0) == "−2"


def test_histogram_marks_what_is_shown_and_counts_everyone():
    figure = score_histogram(ranking())
    bars = figure.data[0]
    assert abs(bars.x[-2] - 3) <= bars.width / 2
    assert bars.y[-2] == 1
    assert sum(bars.y) == 4
    assert list(figure.data[1].x) == [3.0, 1.0]
    assert list(figure.data[2].x) == [-2.0]
    assert list(share_bars(shares(RECORDS, SCORES, "label")).data[0].x) == [0.25, 0.75]


def test_tiles_carry_record_and_score(tiny):
    table = tiny.table
    found = tiles([Scored(table.records[0], 2.0), Scored(table.records[1], 1.0)], table)
    assert [t["share"] for t in found] == [1.0, 0.5]
    assert found[0]["src"].startswith("data:image/png;base64,")
    assert found[0]["alt"] == f"Training image: {table.records[0].caption}, by {table.records[0].creator}"


def test_default_power_is_on_the_sliders_grid():
    assert default_power(0.1) == -1
    assert default_power(100) == 2
