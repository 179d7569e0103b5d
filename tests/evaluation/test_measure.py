"""Measuring methods on retrained models of the tiny study: cross-fitted λ, the evaluation queries, stored results."""

import numpy as np
import pytest

from dtrak.build.retrain import retrain_subsets
from dtrak.config import RANDOMISED
from dtrak.evaluation.lds import lds
from dtrak.evaluation.measure import all_settings, evaluate, judges, score_matrices, score_now
from dtrak.evaluation.results import load_evaluation, save_evaluation
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor
from dtrak.methods.choices import stored
from dtrak.methods.query import load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth, load_subsets
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError


def test_evaluate_needs_subset_models(fresh):
    with pytest.raises(DtrakError, match="none yet"):
        evaluate(Attributor(fresh))
    retrain_subsets(fresh, "lds", 2, 1, Local(1))
    with pytest.raises(DtrakError, match="There are 2"):
        evaluate(Attributor(fresh))


def test_each_setting_is_scored_by_crossfitting(attributor):
    settings = [Setting("dtrak"), Setting("grad-cos"), Setting("random"), Setting("pixel-dot"), Setting("journey-trak")]
    rows = evaluate(attributor, settings)
    assert [(r.method, r.queries) for r in rows[:2]] == [("dtrak", "held-out"), ("dtrak", "generated")]
    assert [r.queries for r in rows if r.method == "journey-trak"] == ["generated"]
    for row in rows:
        assert row.subset_models == 6
        assert row.interval[0] <= row.lds_crossfit <= row.interval[1]
        assert row.lds_oracle == max(row.curve)
        assert row.over_trak[1] <= row.over_trak[0] <= row.over_trak[2]
        assert len(row.dampings) == (2 if row.method in ("dtrak", "journey-trak") else 0)
    truth, asked = load_subsets(attributor.folder, "lds"), load_query_set(attributor.folder)
    scores = np.stack([attributor.scores(Setting("pixel-dot"), q, {})[0] for q in asked.queries[:2]])
    pixel = next(r for r in rows if r.method == "pixel-dot")
    assert pixel.curve[0] == pytest.approx(lds(scores, truth.masks, truth.losses[:, :2]).mean())


def test_scores_from_stored_queries_equal_those_of_a_page(attributor):
    asked = load_query_set(attributor.folder)
    for setting in (
        Setting("dtrak", damping=1.0),
        Setting("trak", timesteps=1, projection_dim=32, damping=0.1),
        Setting("grad-cos", output="l2-norm"),
    ):
        (matrix,) = score_matrices(attributor, setting, asked)
        for place in (0, 3):
            query = asked.queries[place]
            alone, _ = attributor.scores(setting, query, attributor.features(query, [setting], by_block=False))
            np.testing.assert_allclose(matrix[place], alone, rtol=1e-4, atol=1e-6 * np.abs(alone).max())


def test_one_setting_now_equals_the_whole_table(attributor):
    setting = Setting("dtrak", damping=1.0)
    (row, _) = evaluate(attributor, [setting])
    assert score_now(attributor, setting, "held-out", judges(attributor)).mean == pytest.approx(row.curve[0])
    default = METHODS["dtrak"].damping
    judged = judges(attributor)
    settings = Setting("dtrak"), Setting("dtrak", damping=default)
    own, fixed = (score_now(attributor, setting, "generated", judged) for setting in settings)
    assert own == fixed


def test_the_randomised_model_is_another_model_of_the_same_scales(attributor):
    plain, shuffled = load_study_model(attributor.folder), load_study_model(attributor.folder, variant=RANDOMISED)
    assert plain.fingerprint() != shuffled.fingerprint()
    assert shuffled.fingerprint() == load_study_model(attributor.folder, variant=RANDOMISED).fingerprint()
    for a, b in zip(plain.parameters().values(), shuffled.parameters().values(), strict=True):
        np.testing.assert_allclose(np.sort(a.detach().flatten()), np.sort(b.detach().flatten()))
    assert stored(attributor, Setting("dtrak", checkpoint=RANDOMISED))


def test_results_are_kept_and_know_what_they_belong_to(attributor):
    settings = all_settings(attributor)
    assert Setting("dtrak", timesteps=1) in settings
    alike = {"timesteps": 5, "projection_dim": 64}
    assert not [s for s in settings if s.method == "trak" and s.output]  # that would be D-TRAK's row again
    for output in ("weighted-mse", "mean", None):
        assert Setting("dtrak", output=output, **alike) in settings
    assert Setting("dtrak", checkpoint=RANDOMISED) in settings
    rows = evaluate(attributor)
    truth = load_subsets(attributor.folder, "lds")
    path = attributor.folder.root / "truth" / "evaluation.json"
    before = path.read_text()
    save_evaluation(attributor.folder, rows, truth)
    kept = load_evaluation(attributor.folder)
    assert kept.rows == tuple(rows)
    assert kept.stale == ""
    assert kept.behind["subset_models"] == 6
    assert kept.behind["steps"] == 3
    row = kept.of(Setting("dtrak", damping=3.0), "generated")
    assert (row.method, row.queries, row.setting) == ("dtrak", "generated", "dtrak")
    assert kept.of(Setting("dtrak", timesteps=2, projection_dim=7), "generated") is None
    path.write_text(path.read_text().replace(kept.behind["model"], "another"))
    assert "the model changed" in load_evaluation(attributor.folder).stale
    path.write_text(before)


def test_results_say_how_many_noise_draws_losses_average(fresh):
    query_set(fresh)
    truth = SubsetTruth(np.ones((4, 14), bool), np.zeros((4, 1)), ("a",), 1)
    for draws in (1, 3):
        config = fresh.study.truth.model_copy(update={"draws": draws})
        folder = StudyFolder(fresh.study.model_copy(update={"truth": config}))
        save_evaluation(folder, [], truth)
        assert load_evaluation(folder).behind["noise_draws"] == draws


def test_a_method_is_not_better_than_itself(attributor):
    for row in evaluate(attributor, [Setting("trak")]):
        assert row.over_trak == (0, 0, 0)
