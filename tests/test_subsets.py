"""Subset models: keyed masks, resume, and the score estimator on a model whose truth is known."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from dtrak.attribution import Attributor
from dtrak.errors import DtrakError
from dtrak.evaluation import subsets
from dtrak.evaluation.lds import lds, lds_with_interval
from dtrak.evaluation.measure import evaluate, score_matrices
from dtrak.evaluation.subsets import SubsetModel, query_losses, query_set
from dtrak.settings import Setting
from dtrak.truth import load_subsets, subset_mask
from index_builder.engine import build_features, build_indexes
from index_builder.retraining import retrain_subsets


@pytest.fixture
def short(fresh, monkeypatch):
    """The tiny study with a recipe of three steps from its own model, and four generated queries."""
    monkeypatch.setattr(subsets, "GENERATED", 4)
    training = fresh.study.training.model_copy(update={"steps": 3, "batch_size": 4, "warmup": 1})
    return type(fresh)(fresh.study.model_copy(update={"training": training}))


def test_masks_are_keyed_halves():
    ids = [str(i) for i in range(101)]
    first = subset_mask(ids, "lds", 3)
    assert first.sum() == 50
    assert (first == subset_mask(ids, "lds", 3)).all()
    assert (first != subset_mask(ids, "fit", 3)).any()
    assert (first != subset_mask(ids, "lds", 4)).any()


def test_retraining_resumes_and_is_read_back(short, monkeypatch):
    assert retrain_subsets(short, "fit", 2, 1, workers=1) == 2
    trained = []
    monkeypatch.setattr(subsets, "initial_model", lambda folder: trained.append(folder) or 1 / 0)
    assert retrain_subsets(short, "fit", 2, 1, workers=1) == 0
    assert trained == []
    truth = load_subsets(short, "fit")
    assert truth.masks.shape == (2, 14)
    assert truth.losses.shape == (2, 6)
    assert truth.seeds == (1, 1)
    asked = query_set(short)
    assert asked.heldout == 2
    assert list(truth.query_ids) == asked.ids
    with pytest.raises(DtrakError, match="none yet"):
        load_subsets(short, "lds")
    attributor = Attributor(short)
    for name in ("empirical-influence", "datamodel"):
        scores, _ = attributor.scores(Setting(name), asked.queries[0], {})
        assert scores.shape == (14,)


def test_workers_change_no_number(short):
    retrain_subsets(short, "lds", 2, 1, workers=1)
    one = load_subsets(short, "lds").losses
    for path in (short.root / "truth" / "lds").glob("*.json"):
        path.unlink()
    retrain_subsets(short, "lds", 2, 1, workers=2)
    np.testing.assert_array_equal(load_subsets(short, "lds").losses, one)


def test_evaluate_scores_each_method_by_crossfitting(short):
    retrain_subsets(short, "lds", 6, 1, workers=1)
    build_indexes(short, build_features(short, workers=1))
    rows = evaluate(Attributor(short), [Setting("dtrak"), Setting("grad-cos"), Setting("random"), Setting("pixel-dot")])
    assert [(r.method, r.queries) for r in rows[:2]] == [("dtrak", "held-out"), ("dtrak", "generated")]
    for row in rows:
        assert row.subset_models == 6
        assert row.interval[0] <= row.lds_crossfit <= row.interval[1]
        assert row.lds_oracle >= row.curve[0]
        assert bool(row.dampings) == (row.method == "dtrak")
    truth, attributor, asked = load_subsets(short, "lds"), Attributor(short), query_set(short)
    scores = np.stack([attributor.scores(Setting("pixel-dot"), q, {})[0] for q in asked.queries[:2]])
    assert rows[-2].curve[0] == pytest.approx(lds(scores, truth.masks, truth.losses[:, :2]).mean())
    setting = Setting("dtrak", damping=1.0)
    matrix = score_matrices(attributor, setting, asked.queries)[0]
    alone, _ = attributor.scores(setting, asked.queries[3], attributor.features(asked.queries[3], [setting]))
    np.testing.assert_allclose(matrix[3], alone, rtol=1e-4, atol=1e-6 * np.abs(alone).max())


def test_losses_belong_to_the_query_alone(tiny):
    from dtrak.studies import load_study_model

    model = load_study_model(tiny)
    from dtrak.attribution import Query

    queries = [Query(np.asarray(p), "round") for p in tiny.table.pixels[:3]]
    np.testing.assert_allclose(query_losses(model, queries)[1:], query_losses(model, queries[1:]), rtol=1e-6)
    assert SubsetModel("lds", 7, 1).name == "subset-007-seed-1"


def test_the_score_is_one_for_the_truth_and_zero_for_noise():
    random = np.random.default_rng(0)
    masks = random.random((64, 100)) < 0.5
    effects = random.standard_normal((20, 100))
    losses = -(masks.astype(float) @ effects.T)
    np.testing.assert_allclose(lds(effects, masks, losses), 1)
    np.testing.assert_allclose(lds(-effects, masks, losses), -1)
    noise = lds_with_interval(random.standard_normal((20, 100)), masks, losses)
    assert noise.low < 0 < noise.high
    assert noise.subsets == 64
    half = effects + random.standard_normal(effects.shape)
    expected = [spearmanr(-(masks @ half[q]), losses[:, q]).statistic for q in range(20)]
    np.testing.assert_allclose(lds(half, masks, losses), expected)
    # A correlation of r between true and estimated effects gives an LDS near (6/π) asin(r/2).
    assert lds(half, masks, losses).mean() == pytest.approx(6 / np.pi * np.arcsin(0.5**0.5 / 2), abs=0.08)
    assert (lds(np.zeros((1, 100)), masks, losses[:, :1]) == 0).all()
