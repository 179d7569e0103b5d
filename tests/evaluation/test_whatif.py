"""The linear prediction equals sampling; random comparison sets are keyed and exclude the chosen rows."""

import numpy as np
import pytest

from dtrak.evaluation.whatif import predict, random_rows


def test_the_prediction_is_set_against_random_sets_of_the_same_size():
    random = np.random.default_rng(0)
    scores = random.standard_normal(200) ** 3
    rows = np.argsort(-scores)[:5].tolist()
    found = predict(scores, rows)
    assert found.count == 5
    assert found.total == pytest.approx(scores[rows].sum())
    sums = np.array([scores[random.permutation(200)[:5]].sum() for _ in range(20_000)])
    assert found.z == pytest.approx((found.total - sums.mean()) / sums.std(), rel=0.05)
    assert found.beyond > 0.99


def test_opponents_are_predicted_to_do_the_opposite():
    scores = np.random.default_rng(0).standard_normal(200)
    found = predict(scores, np.argsort(scores)[:5].tolist())
    assert found.z < -3
    assert found.beyond < 0.01
    assert found.share == 0


def test_sets_without_a_question_have_no_answer():
    scores = np.array([1.0, -2.0, 3.0])
    assert predict(scores, []).z == 0
    assert predict(scores, [0, 1, 2]).z == 0
    assert predict(np.zeros(3), [1]).share == 0


def test_random_others_are_keyed_and_not_the_chosen():
    rows = [1, 2, 3]
    found = random_rows(20, rows, "a")
    assert found == random_rows(20, rows, "a")
    assert found != random_rows(20, rows, "b")
    assert len(found) == 3
    assert not set(found) & set(rows)
    assert len(random_rows(4, [0, 1, 2], "a")) == 3
