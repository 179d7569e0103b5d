"""The check of the significance test: rates by kind, and measured influence of named pairs."""

import numpy as np
import pytest

from dtrak.evaluation.measure import judges
from dtrak.evaluation.naming import Effects, naming
from dtrak.evaluation.results import load_evaluation
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth
from dtrak.utils.errors import DtrakError


def world():
    random = np.random.default_rng(0)
    masks = random.random((80, 30)) < 0.5
    labels = ["a"] * 10 + ["b"] * 20
    losses = random.standard_normal((80, 4)) - 3 * masks[:, [2]] + masks[:, :10].sum(1)[:, None]
    return SubsetTruth(masks, losses, (), 1), [labels]


def test_influence_is_a_difference_of_means_with_counts_taken_out():
    truth, groups = world()
    effects = Effects(truth, groups)
    counts = np.column_stack([np.ones(80), truth.masks[:, :10].sum(1), truth.masks[:, 10:].sum(1)])
    left = truth.losses - counts @ np.linalg.lstsq(counts, truth.losses, rcond=None)[0]
    left /= left.std(0)
    for query, image in ((0, 2), (3, 17)):
        inside = truth.masks[:, image]
        expected = left[~inside, query].mean() - left[inside, query].mean()
        assert effects.pairs()[query, image] == pytest.approx(expected)
    assert effects.pairs()[:, 2].min() > 1
    chosen = np.zeros((4, 30), bool)
    assert effects.mean(chosen) == ()
    chosen[:, 2] = True
    value, error, pairs = effects.mean(chosen)
    assert (value, pairs) == (pytest.approx(effects.pairs()[:, 2].mean()), 4)
    assert 0.02 < error < 0.3


def test_the_tests_rates_are_reported(attributor):
    truth, asked = judges(attributor)
    found = naming(attributor, Setting("dtrak"), truth, asked)
    tested = {kind: count for kind, (count, _) in found.rates.items()}
    assert tested == {"held-out": 2, "generated": 4, "drawing": 20, "shuffled": 20, "noise": 20, "flat": 20}
    with pytest.raises(DtrakError, match="is not compared with unrelated"):
        naming(attributor, Setting("random"), truth, asked)
    stored = load_evaluation(attributor.folder)
    assert [entry.method for entry in stored.naming] == ["dtrak", "trak", "pixel-rbf-label"]
    assert stored.naming[0] == found
    assert {row.family for row in stored.families} == {"remove-20"}
    assert set(stored.behind["ceilings"]) == {"held-out", "generated"}
