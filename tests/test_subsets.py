"""Subset models: keyed masks, resume, the same numbers whoever trains."""

import numpy as np
import pytest

from dtrak.attribution import Attributor
from dtrak.errors import DtrakError
from dtrak.evaluation import subsets
from dtrak.evaluation.subsets import SubsetModel, query_losses, query_set
from dtrak.query import Query
from dtrak.settings import Setting
from dtrak.truth import load_subsets, subset_mask
from index_builder.retraining import retrain_subsets


def test_masks_are_keyed_halves():
    ids = [str(i) for i in range(101)]
    first = subset_mask(ids, "lds", 3)
    assert first.sum() == 50
    assert (first == subset_mask(ids, "lds", 3)).all()
    assert (first != subset_mask(ids, "fit", 3)).any()
    assert (first != subset_mask(ids, "lds", 4)).any()


def test_retraining_resumes_and_is_read_back(fresh, monkeypatch):
    assert retrain_subsets(fresh, "fit", 2, 1, workers=1) == 2
    trained = []
    monkeypatch.setattr(subsets, "initial_model", lambda folder: trained.append(folder) or 1 / 0)
    assert retrain_subsets(fresh, "fit", 2, 1, workers=1) == 0
    assert trained == []
    truth = load_subsets(fresh, "fit")
    assert truth.masks.shape == (2, 14)
    assert truth.losses.shape == (2, 6)
    assert truth.seeds == (1, 1)
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
    retrain_subsets(fresh, "lds", 2, 1, workers=1)
    one = load_subsets(fresh, "lds").losses
    for path in (fresh.root / "truth" / "lds").glob("*.json"):
        path.unlink()
    retrain_subsets(fresh, "lds", 2, 1, workers=2)
    np.testing.assert_array_equal(load_subsets(fresh, "lds").losses, one)


def test_losses_belong_to_the_query_alone(tiny):
    from dtrak.studies import load_study_model

    model = load_study_model(tiny)
    queries = [Query(np.asarray(p), "round") for p in tiny.table.pixels[:3]]
    np.testing.assert_allclose(query_losses(model, queries)[1:], query_losses(model, queries[1:]), rtol=1e-6)
    assert SubsetModel("lds", 7, 1).name == "subset-007-seed-1"
