"""Measures of agreement equal their definitions, written as loops."""

import numpy as np
import pytest

from dtrak.analysis.comparison import (
    agreement,
    contrast,
    disagreements,
    kendall,
    overlap,
    rank_biased_overlap,
    ranking,
    ranks,
)


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
    assert overlap(a, b, 10) == len(set(np.argsort(-a)[:10]) & set(np.argsort(-b)[:10])) / 10
    assert overlap(a, a, 100) == 1
    assert overlap(a, -a, 10) == 0


def test_rank_biased_overlap_is_its_sum(pair):
    a, b = pair
    first, second = ranking(a).tolist(), ranking(b).tolist()
    total = weight = 0.0
    for depth in range(1, 61):
        shared = len(set(first[:depth]) & set(second[:depth])) / depth
        total += 0.9 ** (depth - 1) * shared
        weight += 0.9 ** (depth - 1)
    assert rank_biased_overlap(a, b) == pytest.approx(total / weight)
    assert rank_biased_overlap(a, a) == pytest.approx(1)


def test_kendall_counts_pairs(pair):
    a, b = pair
    signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i in range(60) for j in range(i)]
    assert kendall(a, b) == pytest.approx(np.mean(signs))
    assert kendall(a, np.ones(60)) == 0
    assert agreement(a, b, 5).kendall == kendall(a, b)


def test_the_strongest_disagreement_comes_first():
    a = -np.arange(100.0)
    b = a.copy()
    b[0] = -1000  # the first of a is the last of b
    found = disagreements(a, b, 3)
    assert (found[0].row, found[0].place_a, found[0].place_b) == (0, 1, 100)
    assert disagreements(a, a) == []


def test_a_contrast_is_one_more_query(pair):
    random = np.random.default_rng(1)
    train, x, y = random.standard_normal((20, 5)), random.standard_normal(5), random.standard_normal(5)
    a, b = train @ x, train @ y
    query = x / np.linalg.norm(a) - y / np.linalg.norm(b)
    np.testing.assert_allclose(contrast(a, b), train @ query)
    assert np.abs(contrast(a, 3 * a)).max() < 1e-12
