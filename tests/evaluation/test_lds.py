"""The LDS and its interval, on models with losses known in closed form."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from dtrak.evaluation.lds import bootstrap, lds, lds_with_interval
from dtrak.evaluation.measure import _crossfit, _row
from dtrak.methods.retrained import datamodel, empirical_influence
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth
from dtrak.utils.noise import keyed_generator
from tests.oracle import bootstrapped_lds


def linear_world(models=64, images=100, queries=20):
    """Random halves, the effect of each image on each query, and the losses of subset models, linear in the effects."""
    random = np.random.default_rng(0)
    masks = random.random((models, images)) < 0.5
    effects = random.standard_normal((queries, images))
    return random, masks, effects, -(masks.astype(float) @ effects.T)


def test_the_score_is_one_for_the_truth_and_minus_one_for_its_negative():
    _, masks, effects, losses = linear_world()
    np.testing.assert_allclose(lds(effects, masks, losses), 1)
    np.testing.assert_allclose(lds(-effects, masks, losses), -1)
    score = lds_with_interval(effects, masks, losses, 50)
    assert (score.mean, score.low, score.high, score.subsets) == pytest.approx((1, 1, 1, 64), abs=1e-6)


def test_noise_scores_zero_within_its_interval():
    random, masks, effects, losses = linear_world()
    noise = lds_with_interval(random.standard_normal(effects.shape), masks, losses)
    assert noise.low < 0 < noise.high
    assert (lds(np.zeros((1, 100)), masks, losses[:, :1]) == 0).all()


def test_a_known_correlation_gives_a_known_score():
    random, masks, effects, losses = linear_world()
    half = effects + random.standard_normal(effects.shape)
    expected = [spearmanr(-(masks @ half[q]), losses[:, q]).statistic for q in range(20)]
    np.testing.assert_allclose(lds(half, masks, losses), expected)
    # A correlation of r between true and estimated effects gives an LDS near (6/π) asin(r/2).
    assert lds(half, masks, losses).mean() == pytest.approx(6 / np.pi * np.arcsin(0.5**0.5 / 2), abs=0.08)


@pytest.mark.parametrize("ties", [False, True])
def test_all_resamples_at_once_equal_each_ranked_alone(ties):
    random, masks, effects, losses = linear_world(models=12, images=30, queries=4)
    scores = effects + random.standard_normal(effects.shape)
    if ties:
        scores, losses = scores.round(), losses.round()
    draws = keyed_generator("bootstrap", 0, "").integers(0, 12, (40, 12))
    found = bootstrap(scores, masks, losses, 40)
    np.testing.assert_allclose(found, bootstrapped_lds(scores, masks, losses, draws), atol=1e-5)
    assert not np.allclose(found, bootstrap(scores, masks, losses, 40, key="another"))


def test_chunks_of_queries_change_nothing(monkeypatch):
    _, masks, effects, losses = linear_world(models=12, images=30, queries=7)
    noisy = effects + 1
    whole = bootstrap(noisy, masks, losses, 20)
    monkeypatch.setattr("dtrak.evaluation.lds.CHUNK", 500)
    np.testing.assert_allclose(bootstrap(noisy, masks, losses, 20), whole, atol=1e-6)


def test_a_method_fitted_to_other_retrained_models_beats_a_noisy_estimate():
    random, masks, effects, losses = linear_world(images=60, queries=4)
    others = random.random((600, 60)) < 0.5
    seen = -(others.astype(float) @ effects.T) + random.standard_normal((600, 4))
    noisy = lds(effects + 2 * random.standard_normal(effects.shape), masks, losses).mean()
    for estimate in (datamodel, empirical_influence):
        fitted = np.stack([estimate(others, seen[:, q]) for q in range(4)])
        assert lds(fitted, masks, losses).mean() > max(0.7, noisy)
    assert lds(np.stack([datamodel(others, seen[:, q]) for q in range(4)]), masks, losses).mean() > 0.95


def judged(models=64):
    random, masks, effects, losses = linear_world(models=models)
    return random, effects, SubsetTruth(masks, losses, (), 1)


def test_lambda_is_chosen_on_one_half_and_reported_on_the_other():
    _, effects, truth = judged()
    even = np.arange(64) % 2 == 0
    losses = np.where(even[:, None], truth.losses, -truth.losses)  # what holds on one half is wrong on the other
    truth = SubsetTruth(truth.masks, losses, (), 1)
    found = _crossfit([effects, -effects], truth, slice(None))
    assert found.chosen == [0, 1]
    assert found.mean == pytest.approx(-1)


def test_the_gain_over_trak_has_its_sign_and_its_pairing():
    random, effects, truth = judged()
    noisy = effects + 2 * random.standard_normal(effects.shape)
    good, poor = (_crossfit([scores], truth, slice(None)) for scores in (effects, noisy))
    rows = [_row(Setting("pixel-dot"), "generated", [s], f, poor, truth, slice(None))
            for s, f in ((effects, good), (noisy, poor))]  # fmt: skip
    gain, low, high = rows[0].over_trak
    assert gain == pytest.approx(good.mean - poor.mean)
    assert low > 0.2
    assert high < 1
    assert rows[1].over_trak == (0, 0, 0)
    assert rows[0].lds_oracle == pytest.approx(1)


def test_what_did_not_learn_scores_nothing():
    random, effects, truth = judged()
    shuffled = random.permuted(effects, axis=1)
    row = _row(Setting("pixel-dot"), "generated", [shuffled], _crossfit([shuffled], truth, slice(None)), None, truth,
               slice(None))  # fmt: skip
    assert abs(row.lds_crossfit) < 0.1
