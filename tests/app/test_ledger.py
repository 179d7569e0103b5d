"""The ledger: shares sum to one, chance is given to nobody, and files say what they hold."""

import csv
import io

import numpy as np
import pytest
from pydantic import ValidationError

from dtrak.analysis.ledger import ShareNull, ledger, merged_change, shares_by
from dtrak.app.figures import credit_bars
from dtrak.app.ledger import LedgerFile, as_csv, as_json, ledger_file
from dtrak.app.runs import Run
from dtrak.data import Record, Records
from dtrak.models.generation import GenerationSettings

RANDOM = np.random.default_rng(0)
NAMES = ["ann", "bob", "=cleo", ""]
RECORDS = Records.of([Record(str(i), "l", f"picture {i}", NAMES[i % 4], "CC0", "train") for i in range(80)])
NULL = ShareNull.of(RECORDS, RANDOM.standard_normal((128, 80)), ["drawing"] * 64 + ["noise"] * 64)
STRONG = RANDOM.standard_normal(80) + np.array([6.0, 0, 0, 0] * 20)
CHANCE = RANDOM.standard_normal(80)


def run_of(name):
    return Run(name, np.zeros((4, 4, 3), np.uint8), "l", GenerationSettings(1), 0.0)


def test_a_strong_creator_is_credited_and_chance_is_not():
    strong, _ = ledger(NULL, [STRONG])
    first = strong.credits[0]
    assert first.creator == "ann"
    assert first.credited == pytest.approx(first.observed - first.expected)
    assert first.low < first.credited < first.high
    assert [c.credited for c in strong.credits[1:]] == [0, 0, 0]
    assert strong.unattributed == pytest.approx(1 - first.credited)
    chance, _ = ledger(NULL, [CHANCE])
    assert chance.unattributed == 1
    assert sum(c.observed for c in chance.credits) == pytest.approx(1)


def test_unrelated_images_are_credited_rarely():
    more = RANDOM.standard_normal((400, 80))
    credited = [ledger(NULL, [row])[0].unattributed < 1 for row in more]
    assert np.mean(credited) < 0.08  # 5 % and the noise of 400 draws


def test_several_pictures_are_the_mean_of_each():
    whole, each = ledger(NULL, [STRONG, CHANCE])
    assert whole.pictures == 2
    assert whole.unattributed == pytest.approx(np.mean([one.unattributed for one in each]))
    assert whole.credits[0].credited_in == 1
    assert whole.credits[0].p_value is None
    assert len(credit_bars(whole).data) == 3


def test_shares_are_of_positive_scores():
    assert shares_by(2, np.array([1, 0, 1]), np.array([3.0, 1.0, -9.0])).tolist() == [0.25, 0.75]
    assert shares_by(1, np.array([0]), np.array([-1.0])).tolist() == [0.0]


def test_copies_that_inflate_a_share_are_found():
    scores = np.zeros(80)
    scores[[0, 4, 8, 1]] = [1.0, 1.0, 1.0, 1.0]  # ann three times, bob once
    groups = np.arange(80)
    groups[[4, 8]] = 0
    fall = merged_change(RECORDS, [scores], groups)
    assert fall["ann"] == pytest.approx(2 / 3)
    assert fall["bob"] == pytest.approx(0)
    groups[[0, 1]] = 50  # a copy by somebody else takes nothing
    assert merged_change(RECORDS, [scores], groups)["bob"] == pytest.approx(0)
    assert set(fall) == {"ann", "bob"}


def test_files_validate_and_their_shares_sum_to_one():
    runs = [run_of("r1"), run_of("r2")]
    _, each = ledger(NULL, [STRONG, CHANCE])
    content = ledger_file("s", "m", "dtrak", "LDS 3", "f", runs, each, RECORDS, [STRONG, CHANCE])
    again = LedgerFile.model_validate_json(as_json(content))
    assert again == content
    rows = list(csv.DictReader(io.StringIO(as_csv(content).decode("utf-8-sig"))))
    for name in ("r1", "r2"):
        assert sum(float(r["share"]) for r in rows if r["output"] == name) == pytest.approx(1, abs=1e-4)
    assert {r["work"] for r in rows if r["output"] == "r2"} == {"unattributed"}
    assert rows[0]["measured"] == "LDS 3"
    broken = content.model_dump()
    broken["rows"] = broken["rows"][:-1]
    with pytest.raises(ValidationError, match="do not sum to 1"):
        LedgerFile.model_validate(broken)
