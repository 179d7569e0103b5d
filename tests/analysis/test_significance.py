"""The significance test: its null, its p-values, and that it stays silent on noise."""

import numpy as np
import pytest

from dtrak.analysis.comparison import ranking
from dtrak.analysis.significance import Null, null_of, standardise, unrelated_scores
from dtrak.data.unrelated import KINDS
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from tests.oracle import null_statistic


def test_the_null_is_of_unrelated_images(attributor, monkeypatch):
    setting = Setting("dtrak")
    lists, kinds = unrelated_scores(attributor, setting)
    assert [kinds.count(kind) for kind in KINDS] == [20] * 4
    (side,), (others,) = attributor.sides(setting), attributor.sides(setting, "unrelated")
    expected = attributor.readout(side).scores(attributor.queries(others), METHODS["dtrak"].damping)
    np.testing.assert_allclose(lists, expected)
    null = null_of(attributor, setting)
    assert null.size == 80
    assert (null.first == [ranking(row) for row in standardise(lists)]).all()
    for text in ("random", "journey-trak", "ekfac", "datamodel"):
        with pytest.raises(DtrakError, match="is not compared with unrelated"):
            null_of(attributor, Setting(text))
    monkeypatch.setattr("dtrak.analysis.significance.MOST_SCORES", 0)  # as in a large study
    monkeypatch.setattr("dtrak.analysis.significance.FEWEST", 3)
    few, of = unrelated_scores(attributor, setting)
    assert [of.count(kind) for kind in KINDS] == [3] * 4
    np.testing.assert_allclose(few, lists[[kinds.index(kind) + i for kind in KINDS for i in range(3)]])


def test_every_null_statistic_leaves_its_own_image_out():
    random = np.random.default_rng(0)
    lists, kinds = random.standard_normal((30, 12)) + 3 * random.standard_normal(12), ["a", "b"] * 15
    null = Null.of(lists, kinds)
    tops = [null_statistic(np.delete(lists, i, 0), lists[i]).max() for i in range(30)]
    np.testing.assert_allclose(null.tops["a"], np.sort(tops[::2]))
    np.testing.assert_allclose(null.tops["b"], np.sort(tops[1::2]))


def test_the_p_value_is_the_rank_among_the_hardest_kind():
    random = np.random.default_rng(0)
    lists = random.standard_normal((60, 40))
    kinds = ["easy"] * 40 + ["hard"] * 20
    lists[40:, 5] += 4 * random.random(20)
    null = Null.of(lists, kinds)
    scores = random.standard_normal(40)
    scores[7] = 9
    verdict = null.judge(scores)
    by_kind = [(1 + sum(top >= null.statistic(scores)[7] for top in tops)) / (1 + len(tops))
               for tops in null.tops.values()]  # fmt: skip
    assert verdict.p_values[7] == pytest.approx(max(by_kind))
    assert verdict.p_value == verdict.p_values.min()
    assert verdict.as_dict([str(i) for i in range(40)])["null_size"] == 60


def test_a_planted_source_is_named_and_noise_is_not():
    random = np.random.default_rng(0)
    null = Null.of(random.standard_normal((1000, 100)), ["noise"] * 1000)
    noise = random.standard_normal((1000, 100))
    assert np.mean([null.judge(row).named.any() for row in noise]) == pytest.approx(0.05, abs=0.02)
    planted = noise[0].copy()
    planted[7] = 10
    assert null.judge(planted).named.nonzero()[0].tolist() == [7]


def test_what_scores_high_for_everything_is_not_named():
    random = np.random.default_rng(0)
    lists = random.standard_normal((400, 100))
    lists[:, 3] += 8
    null = Null.of(lists[:200], ["noise"] * 200)
    assert np.mean([null.judge(row).named[3] for row in lists[200:]]) < 0.02
