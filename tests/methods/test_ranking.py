"""A ranking: operations that change the order change all views of it."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dtrak.app.exports import to_csv, to_html, to_json
from dtrak.app.figures import score_strip
from dtrak.data import Record, Records, Table
from dtrak.methods.base import Search
from dtrak.methods.ranking import Ranking
from dtrak.methods.settings import Setting

RECORDS = tuple(Record(f"r{i}", None, f"<b>{i}</b>", "c", "CC0", "train") for i in range(5))
TABLE = Table(Path(), Records.of(RECORDS), np.zeros((5, 2, 2, 3), np.uint8))
RANKING = Ranking(Setting("dtrak"), 0.1, "f", TABLE, np.array([1.0, 4.0, 3.0, -2.0, -1.0]), top=2)


def ids(scored):
    return [s.record.id for s in scored]


def test_both_ends_are_listed_strongest_first():
    assert ids(RANKING.proponents) == ["r1", "r2"]
    assert ids(RANKING.opponents) == ["r3", "r4"]


def searched(large=True):
    """The ranking as an index finds it; its scores must not be asked for."""

    def refuse():
        raise AssertionError("all scores were asked for")

    index = SimpleNamespace(is_large=large, sampled=lambda q: np.array([3.0, -1.0]))
    ends = (np.array([1, 2]), np.array([3, 4])), (np.array([4.0, 3.0]), np.array([-2.0, -1.0]))
    found = Search(index, np.zeros(1), *ends, 0.1)
    return replace(RANKING, given=refuse, search=found)


def test_what_a_search_found_is_shown_without_all_scores():
    found = searched()
    assert ids(found.proponents) == ids(RANKING.proponents)
    assert ids(found.opponents) == ids(RANKING.opponents)
    assert found.as_dict() == RANKING.as_dict()
    for row in (1, 2, 3, 4):
        assert found.score_and_place(row) == RANKING.score_and_place(row)
    figure = score_strip(found)
    assert sum(figure.data[0].y) == 2
    assert figure.layout.xaxis.title.text == "score of 2 of 5 training images, drawn at random"
    assert max(figure.data[0].x) > 4 - 0.2  # the marks are inside
    with pytest.raises(AssertionError):
        found.score_and_place(0)


def test_a_search_in_a_small_study_shows_all_scores():
    found = replace(searched(large=False), given=lambda: RANKING.scores)
    assert sum(score_strip(found).data[0].y) == 5
    assert found.score_and_place(0) == (1.0, 3)
    merged = found.merged(np.array([0, 1, 1, 2, 3]))
    assert ids(merged.proponents) == ["r1", "r0"]
    assert ids(found.within(-1.5, 3.5).proponents) == ["r2", "r0"]


def test_only_scores_inside_a_range_are_listed():
    ranking = RANKING.merged(np.array([0, 1, 1, 2, 3]))
    scores = sorted(RANKING.scores)
    found = ranking.within(scores[0], scores[-2])
    assert ids(found.proponents) == ["r2", "r0"]  # the strongest of its group is outside
    assert ids(found.opponents) == ids(ranking.opponents)
    assert len(found.scores) == len(RANKING.scores)
    assert ids(RANKING.within(1e6, 2e6).proponents) == []


def test_list_histogram_and_exports_show_the_same_after_any_change():
    merged = RANKING.merged(np.array([0, 1, 1, 2, 3]))
    for ranking in (RANKING, merged, merged.rescored(np.array([5.0, 1.0, 2.0, -1.0, -3.0]), "z-score")):
        listed, opposed = ids(ranking.proponents), ids(ranking.opponents)
        figure = score_strip(ranking)
        assert [c[0] for c in figure.data[1].customdata] == listed
        assert [c[0] for c in figure.data[2].customdata] == opposed
        assert figure.layout.xaxis.title.text.startswith(f"{ranking.unit} of")
        rows = list(csv.DictReader(io.StringIO(to_csv(ranking).decode("utf-8-sig"))))
        assert [row["id"] for row in rows][: len(listed)] == listed
        assert list(ranking.to_pandas()["id"]) == [row["id"] for row in rows]
        content = json.loads(to_json("s", {}, ranking, None, None))
        assert [e["id"] for e in content["proponents"]] == listed
        page = to_html("s", {}, TABLE.pixels[0], [ranking]).decode()
        assert all(i in page for i in listed)


def test_a_group_is_listed_once_by_its_strongest():
    merged = RANKING.merged(np.array([0, 1, 1, 2, 3]))
    assert ids(merged.proponents) == ["r1", "r0"]
    assert [TABLE.records[row].id for row in merged.order()] == ["r1", "r0", "r4", "r3"]


def test_the_gallery_of_a_notebook_escapes_captions():
    assert "<b>1</b>" not in RANKING._repr_html_()
    assert "&lt;b&gt;1" in RANKING._repr_html_()
