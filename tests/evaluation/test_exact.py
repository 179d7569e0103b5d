"""Exact influence of a study: stored for the method, resumable, and equal to trainings with changed weights."""

import json

import numpy as np
import pytest

from dtrak.evaluation.exact import check_exact_influence, exact_influence, query_loss
from dtrak.evaluation.subsets import query_losses
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.training.study import training_run
from dtrak.utils.errors import DtrakError
from tests.helpers import call

RECIPE = {"steps": 6, "batch_size": 7, "epsilon": 1e-4, "learning_rate": 1e-4}


@pytest.fixture
def smooth(fresh):
    """The study with a gentle recipe."""
    training = fresh.study.training.model_copy(update=RECIPE)
    return StudyFolder(fresh.study.model_copy(update={"training": training}))


@pytest.fixture
def picture(smooth):
    return Query(np.asarray(smooth.table.pixels[-1]), "round")


def test_the_loss_is_that_of_retrained_models(smooth, picture):
    run = training_run(smooth, smooth.study.training)
    run.train()
    run.use_average()
    truth = smooth.study.truth
    loss = query_loss(run.model, picture, truth)()
    assert float(loss) == pytest.approx(query_losses(run.model, [picture], truth).mean(), rel=1e-5)


def test_derivatives_equal_trainings_with_changed_weights(smooth, picture):
    ids = [smooth.table.train_ids[row] for row in (0, 5)]
    seen = []
    checked, found = check_exact_influence(
        smooth, picture, ids, 1e-4, double=True, report=lambda done, total: seen.append((done, total))
    )
    for one in checked:
        assert one.exact == pytest.approx(one.difference, rel=1e-4)
    assert found.growth < 10
    assert seen[-1] == (42, 42)
    with pytest.raises(DtrakError, match="no training image 'none'"):
        check_exact_influence(smooth, picture, ["none"], 0.01)


def test_the_method_reads_what_was_computed(smooth, picture):
    attributor = Attributor(smooth)
    assert "No exact influence" in attributor.why_not("exact").message
    found = exact_influence(smooth, [picture])
    assert attributor.why_not("exact") is None
    scores, damping = attributor.scores(Setting("exact"), picture, {})
    assert damping is None
    np.testing.assert_allclose(scores, found.scores[0], rtol=1e-6)
    other = Query(np.asarray(smooth.table.pixels[0]), "square")
    with pytest.raises(DtrakError, match="not computed"):
        attributor.scores(Setting("exact"), other, {})
    half = smooth.study.training.model_copy(update={"precision": "bf16"})
    with pytest.raises(DtrakError, match="bfloat16"):
        exact_influence(StudyFolder(smooth.study.model_copy(update={"training": half})), [picture])


def test_the_method_reads_what_ships_with_the_study(smooth, picture, tmp_path):
    found = exact_influence(smooth, [picture]).scores[0]
    truth = smooth.study.truth.model_copy(update={"path": tmp_path / "shipped"})
    shipped = StudyFolder(smooth.study.model_copy(update={"truth": truth}))
    (tmp_path / "shipped").mkdir()
    (smooth.root / "exact").rename(tmp_path / "shipped" / "exact")
    assert "No exact influence" in Attributor(smooth).why_not("exact").message
    scores, _ = Attributor(shipped).scores(Setting("exact"), picture, {})
    np.testing.assert_allclose(scores, found, rtol=1e-6)


def test_a_rough_training_leaves_nothing_behind(fresh):
    training = fresh.study.training.model_copy(update={"epsilon": 1e-300, "learning_rate": 1e6})
    rough = StudyFolder(fresh.study.model_copy(update={"training": training}))
    with pytest.raises(DtrakError, match="no longer finite"):
        exact_influence(rough, [Query(np.asarray(rough.table.pixels[-1]), "round")])
    assert not list((rough.root / "exact").rglob("*.safetensors"))


def test_queries_share_a_replay(smooth, picture):
    other = Query(np.asarray(smooth.table.pixels[0]), "square")
    both = exact_influence(smooth, [picture, other]).scores
    np.testing.assert_allclose(both[1], exact_influence(smooth, [other]).scores[0], rtol=1e-4, atol=1e-9)


def test_the_commands(fresh, source):
    image = next((source / "images").rglob("*.png"))
    study = source / "tiny.yaml"
    content = json.loads(call("exact", study, "--image", image, "--label", "round", "--json").output)
    assert set(content["scores"][0]) == set(fresh.table.train_ids)
    assert "grew" in call("exact", study, "--image", image, "--label", "round").output
    one = fresh.table.train_ids[0]
    found = json.loads(call("check-exact", study, "--image", image, "--images", one, "--json").output)
    assert [set(entry) for entry in found] == [{"id", "exact", "difference"}]
    assert call("exact", study).exit_code == 2
