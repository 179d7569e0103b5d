"""The statement of one creator."""

import json

import numpy as np
import pytest

from dtrak.app.creators import sentence, standings, strongest_images, to_html, to_json
from dtrak.data import Record, Records


def test_a_creators_strongest_images_come_first():
    records = Records.of([Record(str(i), None, "", "a" if i % 2 else None, "", "train") for i in range(4)])
    scores = [np.array([1.0, 1.0, -5.0, 2.0]), np.array([0.0, 1.0, 0.0, 0.0])]
    found = strongest_images(records, scores, "a", 9)
    assert [(s.record.id, s.score) for s in found] == [("1", 0.625), ("3", 0.25)]
    assert [s.record.id for s in strongest_images(records, scores, "unknown", 1)] == ["0"]


def test_standings_sum_to_one_and_tell_prolific_from_influential():
    records = Records.of(
        [Record(str(i), None, f"flag {i}", "many" if i < 8 else "=few", "", "train") for i in range(10)]
    )
    scores = [np.array([1.0] * 8 + [4.0, -3.0]), np.array([1.0] * 8 + [4.0, 0.0])]
    many, few = standings(records, scores)
    assert (many.creator, many.images, many.share_of_data) == ("many", 8, 0.8)
    assert many.total == pytest.approx(8 / 12)
    assert few.total == pytest.approx(4 / 12)
    assert few.per_image == pytest.approx((4 / 12) / 0.2)
    assert many.total_low <= many.total <= many.total_high
    assert "2 are too few" in sentence(few)
    many_pictures = standings(records, scores * 5)
    assert ": more than an average image" in sentence(many_pictures[1])
    assert ": less than an average image" in sentence(many_pictures[0])
    content = json.loads(to_json("tiny", "dtrak", "LDS 3", few, [{"seed": 1}]))
    assert content["standing"]["images"] == 2
    page = to_html(
        "A & B", "D-TRAK", "LDS <3>", few, [("data:x", "flag <8>")], [("data:y", "Seed 1")], "credit"
    ).decode()
    assert "flag &lt;8&gt;" in page
    assert "http" not in page
    assert standings(records, [np.zeros(10)])[0].total == 0
