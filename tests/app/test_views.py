"""What pages show, tested without pages."""

from pathlib import Path

import numpy as np
import pytest

from dtrak.analysis.evidence import Split, Stability
from dtrak.analysis.significance import Verdict
from dtrak.app.figures import score_strip, share_bars
from dtrak.app.views import (
    between,
    damping_text,
    default_power,
    effective_number,
    format_score,
    shares,
    significance,
    stable_count,
    tiles,
    timestep_band,
)
from dtrak.data import Record, Records, Table
from dtrak.methods.ranking import Ranking, Scored
from dtrak.methods.settings import Setting

RECORDS = Records.of(
    [Record(str(i), "ab"[i % 2], f"picture {i}", f"artist {i // 2}", "CC0", "train") for i in range(4)]
)
SCORES = np.array([3.0, 1.0, -2.0, 0.0])


def ranking():
    table = Table(Path(), RECORDS, np.zeros((4, 2, 2, 3), np.uint8))
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
    figure = score_strip(ranking())
    bars = figure.data[0]
    assert abs(bars.x[-2] - 3) <= bars.width / 2
    assert bars.y[-2] == 1
    assert sum(bars.y) == 4
    assert list(figure.data[1].x) == [3.0, 1.0]
    assert list(figure.data[2].x) == [-2.0]
    assert list(share_bars(shares(RECORDS, SCORES, "label")).data[0].x) == [0.25, 0.75]


def test_the_range_boxed_in_a_figure():
    assert between(None) is None
    assert between({"selection": {"box": []}}) is None
    assert between({"selection": {"box": [{"x": [2.0, -1.0], "y": [0, 1]}]}}) == (-1.0, 2.0)


def test_tiles_carry_record_and_score(tiny):
    table = tiny.table
    found = tiles([Scored(table.records[0], 2.0), Scored(table.records[1], 1.0)], table)
    assert [t["share"] for t in found] == [1.0, 0.5]
    assert found[0]["src"].startswith("data:image/png;base64,")
    assert found[0]["alt"] == f"Training image: {table.records[0].caption}, by {table.records[0].creator}"


def test_default_power_is_on_the_sliders_grid():
    assert default_power(0.1) == -1
    assert default_power(100) == 2
    assert [damping_text(power) for power in (-4, -0.5, 0, 4)] == ["0.0001", "0.316", "1", "1e+04"]


@pytest.mark.parametrize(
    ("p_values", "words"),
    [
        (
            (0.5, 0.02, 1, 1),
            "**1 significant source** (5 % family-wise; smallest p = 0.02). Compared with 7",
        ),
        ((0.01, 0.02, 1, 1), "**2 significant sources**"),
        ((0.5, 0.2, 1, 1), "weak evidence at most. Compared with 7 unrelated images: 3 drawings, 4 noise."),
    ],
)
def test_the_verdict_in_words(p_values, words):
    verdict = Verdict(min(p_values), np.array(p_values), "3 drawings, 4 noise", 7)
    assert words in significance(verdict)


def test_stable_images_are_in_the_top_of_half_of_the_resamples():
    found = ranking()
    stable = Stability(np.array([0.5, 0.49, 1.0, 1.0]), np.ones(4), np.ones(4), 40, 2)
    assert stable_count(found.proponents, found.table, stable) == 1
    assert stable_count(found.opponents, found.table, stable) == 1


def test_a_band_of_timesteps_includes_its_ends():
    split = Split(["t = 0", "t = 10", "t = 10, draw 2", "t = 20"], np.diag([1.0, 2.0, 4.0, 8.0]), [0, 10, 10, 20])
    names, part = timestep_band(split, 10, 20)
    assert names == ["t = 10", "t = 10, draw 2", "t = 20"]
    assert part.tolist() == [0, 2, 4, 8]
    assert timestep_band(split, 0, 20)[1].tolist() == split.scores.sum(0).tolist()
