"""Measures of agreement equal their definitions, written as loops."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dtrak.analysis.comparison import (
    Ranked,
    agreement,
    contrast,
    contrasted,
    disagreements,
    kendall,
    overlap,
    paired,
    rank_biased_overlap,
    ranking,
    ranks,
)
from dtrak.data import Record, Records, Table
from dtrak.methods.base import Search
from dtrak.methods.ranking import Ranking, top_scored
from dtrak.methods.settings import Setting

of = Ranked.of


@pytest.fixture
def pair():
    random = np.random.default_rng(0)
    a = random.standard_normal(60)
    return a, a + random.standard_normal(60)


def test_ranks_invert_the_ranking(pair):
    a, _ = pair
    assert (ranks(a)[ranking(a)] == np.arange(60)).all()
    assert ranks(np.zeros(4)).tolist() == [0, 1, 2, 3]


def test_overlap_counts_what_both_tops_hold(pair):
    a, b = pair
    assert overlap(of(a), of(b), 10) == len(set(np.argsort(-a)[:10]) & set(np.argsort(-b)[:10])) / 10
    assert overlap(of(a), of(a), 100) == 1
    assert overlap(of(a), of(-a), 10) == 0


def test_rank_biased_overlap_is_its_sum(pair):
    a, b = pair
    first, second = ranking(a).tolist(), ranking(b).tolist()
    total = weight = 0.0
    for depth in range(1, 61):
        shared = len(set(first[:depth]) & set(second[:depth])) / depth
        total += 0.9 ** (depth - 1) * shared
        weight += 0.9 ** (depth - 1)
    assert rank_biased_overlap(of(a), of(b)) == pytest.approx(total / weight)
    assert rank_biased_overlap(of(a), of(a)) == pytest.approx(1)


def test_kendall_counts_pairs(pair):
    a, b = pair
    signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i in range(60) for j in range(i)]
    assert kendall(of(a), of(b)) == pytest.approx(np.mean(signs))
    assert kendall(of(a), of(np.ones(60))) == 0
    assert agreement(of(a), of(b), 5).kendall == kendall(of(a), of(b))


def test_the_strongest_disagreement_comes_first():
    a = -np.arange(100.0)
    b = a.copy()
    b[0] = -1000  # the first of a is the last of b
    found = disagreements(of(a), of(b), 3)
    assert (found[0].row, found[0].place_a, found[0].place_b) == (0, 1, 100)
    assert disagreements(of(a), of(a)) == []


def test_a_contrast_is_one_more_query(pair):
    random = np.random.default_rng(1)
    train, x, y = random.standard_normal((20, 5)), random.standard_normal(5), random.standard_normal(5)
    a, b = train @ x, train @ y
    query = x / np.linalg.norm(a) - y / np.linalg.norm(b)
    np.testing.assert_allclose(contrast(a, b), train @ query)
    assert np.abs(contrast(a, 3 * a)).max() < 1e-12


ROWS, LISTED = 400, 40


@dataclass
class Large:
    """An index without FAISS, of a study where a pass over all rows takes long."""

    features: np.ndarray
    sampled_rows: np.ndarray
    is_large = True

    def both_ends(self, q, top):
        scores = self.features @ q
        ends = ranking(scores)[:top], ranking(-scores)[:top]
        return [(rows, scores[rows]) for rows in ends]

    def sampled(self, q):
        return self.of_rows(q, self.sampled_rows)

    def of_rows(self, q, rows):
        return self.features[rows] @ q


@pytest.fixture
def answers():
    """Two rankings of one method in full, and as an index tells of them."""
    random = np.random.default_rng(2)
    index = Large(random.standard_normal((ROWS, 6)), np.sort(random.choice(ROWS, 150, replace=False)))
    records = Records.of([Record(f"r{row}", None, "", "", "", "train") for row in range(ROWS)])
    table = Table(Path(), records, np.zeros((ROWS, 1, 1, 3), np.uint8))
    first = random.standard_normal(6)
    full, found = [], []
    for q in (first, first + 0.5 * random.standard_normal(6)):
        full.append(Ranking(Setting("dtrak"), 0.1, "f", table, index.features @ q, top=10))
        found.append(replace(full[-1], given=_refuse, search=Search.of(index, q, LISTED, 0.1)))
    return full, found


def _refuse():
    raise AssertionError("all scores were asked for")


def test_what_an_index_lists_is_compared_without_all_scores(answers):
    full, found = ([Ranked.found(one) for one in side] for side in answers)
    assert overlap(*found, 10) == overlap(*full, 10)
    lists = [one.first.tolist() for one in found]
    assert lists == [one.first[:LISTED].tolist() for one in full]
    shared = [len(set(lists[0][:d]) & set(lists[1][:d])) / d for d in range(1, LISTED + 1)]
    weights = 0.9 ** np.arange(LISTED)
    assert rank_biased_overlap(*found) == pytest.approx(weights @ shared / weights.sum())
    assert rank_biased_overlap(*found) == pytest.approx(rank_biased_overlap(*full), abs=0.02)
    rows = found[0].rows
    assert kendall(*found) == kendall(of(full[0].scores[rows]), of(full[1].scores[rows]))
    places = found[1].places(np.arange(ROWS))
    whole = full[1].places(np.arange(ROWS))
    assert (whole == ranks(full[1].scores)).all()
    assert (places == np.where(whole < LISTED, whole, LISTED)).all()
    assert (found[0].place_text(LISTED), found[0].place_text(LISTED + 1)) == ("40", "> 40")
    for gap in disagreements(*found):
        first, second = (min(int(one.places(np.array([gap.row]))[0]), LISTED) + 1 for one in full)
        assert (gap.place_a, gap.place_b) == (first, second)


def test_a_full_ranking_is_compared_with_a_listed_one(answers):
    (full, _), (_, found) = answers
    one, other = Ranked.found(full), Ranked.found(found)
    assert kendall(one, other) == kendall(of(full.scores[other.rows]), of(found.search.sample()))
    assert 0 < rank_biased_overlap(one, other) <= 1


def test_points_of_the_scatter_have_both_scores(answers):
    full, _ = answers
    for side in answers:
        wanted = [3, 200, 399]
        rows, *scores = paired(*side, wanted, 50)
        assert set(wanted) <= set(rows.tolist())
        assert len(set(rows.tolist())) == len(rows) <= 50 + len(wanted)
        for one, known in zip(full, scores, strict=True):
            np.testing.assert_array_equal(known, one.scores[rows])
    rows, *_ = paired(*full, [], ROWS)
    assert rows.tolist() == list(range(ROWS))


def test_a_contrast_needs_no_pass_over_all_rows(answers):
    full, found = answers
    for sign in (1, -1):
        whole = contrasted(*full, 10, sign)
        assert whole == top_scored(contrast(full[0].scores, full[1].scores), full[0].table, 10, sign)
        listed = contrasted(*found, 10, sign)
        assert len(listed) == 10
        assert len({s.record.id for s in listed} & {s.record.id for s in whole}) >= 8  # the norms are of a sample
        assert [s.score for s in listed] == pytest.approx([s.score for s in whole], rel=0.2)
    index = found[0].search.index
    index.sampled_rows = np.arange(ROWS)  # then they are exact
    assert [s.record for s in contrasted(*found, 10)] == [s.record for s in contrasted(*full, 10)]
