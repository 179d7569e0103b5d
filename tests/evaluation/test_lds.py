"""The LDS and its interval, on models with losses known in closed form."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from dtrak.data import Record, Records, Table
from dtrak.evaluation.lds import (
    Bootstrap,
    Estimate,
    ceiling,
    holm,
    lds,
    lds_with_interval,
    partial_lds,
    predicted,
    reliability,
)
from dtrak.evaluation.measure import Trial
from dtrak.methods.query import QuerySet
from dtrak.methods.retrained import datamodel, empirical_influence
from dtrak.methods.subsets import SubsetTruth
from dtrak.utils.noise import keyed_generator
from tests import oracle
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
    bootstrap = Bootstrap(losses, resamples=40)
    found = bootstrap.estimate(scores, masks)
    _, models, _ = found.resampled
    np.testing.assert_allclose(models, bootstrapped_lds(scores, masks, losses, draws), atol=1e-5)
    assert not np.allclose(models, Bootstrap(losses, None, 40, "another").estimate(scores, masks).resampled[1])
    without = [lds(scores, np.delete(masks, i, 0), np.delete(losses, i, 0)).mean() for i in range(12)]
    without += [np.delete(lds(scores, masks, losses), q).mean() for q in range(4)]
    np.testing.assert_allclose(found.jackknifed, without, atol=1e-5)


def test_both_models_and_queries_are_resampled_with_strata_kept():
    random, masks, effects, losses = linear_world(models=12, images=30, queries=6)
    scores = effects + random.standard_normal(effects.shape)
    bootstrap = Bootstrap(losses, ["a", "a", "a", "a", "b", "b"], 30)
    assert bootstrap.weights[:4].sum(0) == pytest.approx(4 / 6)
    both, _, queries = bootstrap.estimate(scores, masks).resampled
    alone = lds(scores, masks, losses)
    np.testing.assert_allclose(queries, alone @ bootstrap.weights, atol=1e-5)
    table = bootstrap.table(predicted(scores, masks))
    np.testing.assert_allclose(both, [table[:, 1 + b] @ bootstrap.weights[:, b] for b in range(30)])


def test_chunks_of_queries_change_nothing(monkeypatch):
    _, masks, effects, losses = linear_world(models=12, images=30, queries=7)
    noisy = effects + 1
    whole = Bootstrap(losses, resamples=20).estimate(noisy, masks).resampled
    monkeypatch.setattr("dtrak.evaluation.lds.CHUNK", 800)
    np.testing.assert_allclose(Bootstrap(losses, resamples=20).estimate(noisy, masks).resampled, whole, atol=1e-6)


def test_intervals_cover():
    """Simulated studies: scores of varying quality, noisy losses, noise that the queries of a model share."""
    random = np.random.default_rng(0)

    def study(models, queries):
        effects = random.standard_normal((queries, 60))
        quality = np.clip(random.normal(0.4, 0.25, (queries, 1)), -0.9, 0.9)
        scores = quality * effects + np.sqrt(1 - quality**2) * random.standard_normal(effects.shape)
        masks = random.random((models, 60)) < 0.5
        noise = random.standard_normal((models, 1)) + random.standard_normal((models, queries))
        return scores, masks, -(masks @ effects.T) + 3 * noise

    truth = np.mean([lds(*study(32, 300)).mean() for _ in range(150)])
    covered = []
    for number in range(300):
        scores, masks, losses = study(32, 40)
        low, high = Bootstrap(losses, None, 300, str(number)).estimate(scores, masks).interval
        covered.append(low <= truth <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)  # 300 studies: ± 1.3 % by chance


def test_group_counts_are_taken_out():
    random, masks, effects, losses = linear_world(models=40, images=30, queries=3)
    labels, creators = [f"l{i % 3}" for i in range(30)], [f"c{i % 5}" for i in range(30)]
    scores = effects + random.standard_normal(effects.shape)
    groups = [np.array(of) == name for of in (labels, creators) for name in sorted(set(of))]
    counts = np.column_stack([masks.astype(int) @ group for group in groups])
    expected = [oracle.partial_lds(scores[q], masks, losses[:, q], counts) for q in range(3)]
    np.testing.assert_allclose(partial_lds(scores, masks, losses, [labels, creators]), expected)
    by_label = np.array([float(name[1]) for name in labels])[None]  # knows labels alone
    told = -(masks @ by_label.T)
    assert lds(by_label, masks, told)[0] == pytest.approx(1)
    assert partial_lds(by_label, masks, told, [labels])[0] == pytest.approx(0, abs=1e-6)


def test_a_perfect_prediction_reaches_the_ceiling():
    random = np.random.default_rng(0)
    truth = random.standard_normal((400, 30))
    first, second, third = (truth + random.standard_normal(truth.shape) for _ in range(3))
    agreement = float(reliability(first, second).mean())
    masks = np.eye(400, dtype=bool)
    assert ceiling(agreement, 1) == pytest.approx(lds(-truth.T, masks, third).mean(), abs=0.02)
    mean = (first + second) / 2
    assert ceiling(agreement, 2) == pytest.approx(lds(-truth.T, masks, mean).mean(), abs=0.02)
    assert ceiling(-0.1, 1) == 0


def test_p_values_are_adjusted_as_by_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]


def test_a_method_fitted_to_other_retrained_models_beats_a_noisy_estimate():
    random, masks, effects, losses = linear_world(images=60, queries=4)
    others = random.random((600, 60)) < 0.5
    seen = -(others.astype(float) @ effects.T) + random.standard_normal((600, 4))
    noisy = lds(effects + 2 * random.standard_normal(effects.shape), masks, losses).mean()
    for estimate in (datamodel, empirical_influence):
        fitted = np.stack([estimate(others, seen[:, q]) for q in range(4)])
        assert lds(fitted, masks, losses).mean() > max(0.7, noisy)
    assert lds(np.stack([datamodel(others, seen[:, q]) for q in range(4)]), masks, losses).mean() > 0.95


def trial_of(masks, losses, labels):
    records = tuple(Record(str(i), "a", "", "c", "", "train") for i in range(100))
    asked = QuerySet(np.zeros((len(labels), 2, 2, 3), np.uint8), tuple(labels), 0)
    table = Table(Path(), Records.of(records), np.zeros((100, 2, 2, 3), np.uint8))
    return Trial(table, SubsetTruth(masks, losses, (), 1), asked, slice(None))


def trial(losses=None, models=64):
    random, masks, effects, found = linear_world(models=models)
    losses = found if losses is None else losses
    return random, effects, SubsetTruth(masks, losses, (), 1), trial_of(masks, losses, "a" * 20)


def test_lambda_is_chosen_on_one_half_and_reported_on_the_other():
    _, effects, truth, _ = trial()
    even = np.arange(64) % 2 == 0
    losses = np.where(even[:, None], truth.losses, -truth.losses)  # what holds on one half is wrong on the other
    found = trial(losses)[-1].result([effects, -effects])
    assert found.chosen == (0, 1)
    assert found.estimate.value == pytest.approx(-1)


def test_lambda_is_chosen_anew_in_each_resample():
    random, effects, truth, judge = trial(models=16)
    noisy = [effects + s * random.standard_normal(effects.shape) for s in (1.0, 1.05, 3.0)]
    found = judge.result(noisy).estimate
    halves = np.arange(0, 16, 2), np.arange(1, 16, 2)
    assert found.value == pytest.approx(oracle.crossfit(noisy, truth.masks, truth.losses, halves), abs=1e-6)
    for left_out in (0, 5):
        kept = tuple(half[half != left_out] for half in halves)
        expected = oracle.crossfit(noisy, truth.masks, truth.losses, kept)
        place = list(np.concatenate(halves)).index(left_out)
        assert found.jackknifed[place] == pytest.approx(expected, abs=1e-6)
    for query in (0, 7):
        rest = [np.delete(scores, query, 0) for scores in noisy]
        expected = oracle.crossfit(rest, truth.masks, np.delete(truth.losses, query, 1), halves)
        assert found.jackknifed[16 + query] == pytest.approx(expected, abs=1e-6)


def test_a_gain_has_its_sign_and_its_pairing():
    random, effects, _, judge = trial()
    noisy = effects + 2 * random.standard_normal(effects.shape)
    good, poor = (judge.result([scores]).estimate for scores in (effects, noisy))
    gain = good - poor
    assert gain.value == pytest.approx(good.value - poor.value)
    assert 0.2 < gain.interval[0] < gain.value < gain.interval[1] < 1
    assert gain.p_value < 1e-3
    assert (poor - poor).interval == (0, 0)
    assert (poor - poor).p_value == 1


def test_what_did_not_learn_scores_nothing():
    random, effects, _, judge = trial()
    found = judge.result([random.permuted(effects, axis=1)])
    assert abs(found.estimate.value) < 0.1


def test_the_swap_test_finds_scores_that_say_only_the_label():
    _, masks, effects, _ = linear_world()
    alike = np.repeat(effects[:2], 10, axis=0)  # one answer for each of two labels
    losses = -(masks.astype(float) @ alike.T)
    assert trial_of(masks, losses, "a" * 10 + "b" * 10).result([alike]).swap == pytest.approx(1)
    _, effects, _, own = trial()
    assert abs(own.result([effects]).swap) < 0.1


def test_a_constant_statistic_has_a_point_for_an_interval():
    assert Estimate(0.5, np.full((3, 10), 0.5), np.full(4, 0.5)).interval == (0.5, 0.5)
