"""Subset models: keyed masks, resume, the same numbers whoever trains."""

import numpy as np
import pytest

from dtrak.build.retrain import retrain_subsets
from dtrak.evaluation import subsets
from dtrak.evaluation.subsets import SubsetModel, is_done, query_losses, query_set
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import Query, load_query_set
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import load_subsets, subset_mask
from dtrak.utils.errors import DtrakError


def test_masks_are_keyed_halves(tiny):
    first = subset_mask(tiny, "lds", 3)
    assert first.sum() == 7
    assert (first == subset_mask(tiny, "lds", 3)).all()
    assert (first != subset_mask(tiny, "fit", 3)).any()
    assert (first != subset_mask(tiny, "lds", 4)).any()


def test_retraining_resumes_and_is_read_back(fresh, monkeypatch):
    assert retrain_subsets(fresh, "fit", 2, 1, Local(1)) == 2
    trained = []
    monkeypatch.setattr(subsets, "training_run", lambda *a, **k: trained.append(a) or 1 / 0)
    assert retrain_subsets(fresh, "fit", 2, 1, Local(1)) == 0
    assert trained == []
    truth = load_subsets(fresh, "fit")
    assert truth.masks.shape == (2, 14)
    assert truth.losses.shape == (2, 6)
    assert truth.seeds == 1
    asked = query_set(fresh)
    assert asked.heldout == 2
    assert list(truth.query_ids) == asked.ids
    with pytest.raises(DtrakError, match="none yet"):
        load_subsets(fresh, "lds")
    attributor = Attributor(fresh)
    for name in ("empirical-influence", "datamodel"):
        scores, _ = attributor.scores(Setting(name), asked.queries[0], {})
        assert scores.shape == (14,)


def test_workers_change_no_number(fresh):
    retrain_subsets(fresh, "lds", 2, 1, Local(1))
    one = load_subsets(fresh, "lds").losses
    for path in (fresh.root / "truth" / "lds").glob("*.json"):
        path.unlink()
    retrain_subsets(fresh, "lds", 2, 1, Local(2))
    np.testing.assert_array_equal(load_subsets(fresh, "lds").losses, one)


def test_losses_belong_to_the_query_alone(tiny):
    from dtrak.models.loading import load_study_model

    model = load_study_model(tiny)
    queries = [Query(np.asarray(p), "round") for p in tiny.table.pixels[:3]]
    np.testing.assert_allclose(query_losses(model, queries)[1:], query_losses(model, queries[1:]), rtol=1e-6)
    assert SubsetModel("lds", 7, 1).name == "subset-007-seed-1"


def changed(folder, **training):
    recipe = folder.study.training.model_copy(update=training)
    return type(folder)(folder.study.model_copy(update={"training": recipe}))


def test_only_what_is_missing_is_trained(fresh, monkeypatch):
    retrain_subsets(fresh, "lds", 3, 1, Local(1))
    whole = load_subsets(fresh, "lds").losses
    (fresh.root / "truth" / "lds" / "subset-001-seed-0.json").unlink()
    real, trained = subsets.training_run, []
    monkeypatch.setattr(subsets, "training_run", lambda *a, **k: trained.append(a) or real(*a, **k))
    assert retrain_subsets(fresh, "lds", 3, 1, Local(1)) == 1
    assert len(trained) == 1
    np.testing.assert_array_equal(load_subsets(fresh, "lds").losses, whole)


def test_models_of_another_recipe_do_not_count(fresh):
    retrain_subsets(fresh, "lds", 2, 1, Local(1))
    other = changed(fresh, learning_rate=0.5)
    assert not is_done(other, SubsetModel("lds", 0, 0))
    with pytest.raises(DtrakError, match="another recipe"):
        load_subsets(other, "lds")
    assert retrain_subsets(other, "lds", 1, 1, Local(1)) == 1
    assert len(load_subsets(other, "lds").masks) == 1
    assert is_done(changed(fresh, save_every=7), SubsetModel("lds", 1, 0))


def test_seeds_count_once_every_subset_has_them(fresh):
    retrain_subsets(fresh, "lds", 2, 2, Local(1))
    both = load_subsets(fresh, "lds")
    assert both.seeds == 2
    (fresh.root / "truth" / "lds" / "subset-001-seed-1.json").unlink()
    first = load_subsets(fresh, "lds")
    assert first.seeds == 1
    assert (first.losses != both.losses).any()
    assert SubsetModel("fit", 0, 0).training_seed != SubsetModel("lds", 0, 0).training_seed


def test_a_model_of_unknown_training_is_not_trained_again(fresh):
    model = fresh.study.model.model_copy(update={"unet": None})
    unknown = type(fresh)(fresh.study.model_copy(update={"model": model}))
    with pytest.raises(DtrakError, match="does not say how its model was trained"):
        retrain_subsets(unknown, "lds", 2, 1, Local(1))


def test_queries_belong_to_the_model_that_drew_them(fresh, source):
    drawn = query_set(fresh)
    assert load_query_set(fresh).ids == drawn.ids
    model = fresh.study.model.model_copy(update={"path": source / "checkpoint-0.50"})
    other = type(fresh)(fresh.study.model_copy(update={"model": model}))
    with pytest.raises(DtrakError, match="pictures of another model"):
        load_query_set(other)
    assert query_set(other).ids[2:] != drawn.ids[2:]
