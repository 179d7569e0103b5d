"""Exact influence on the evaluation queries: the same in groups as alone, nothing twice, and judged like any method."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from dtrak.build import exact
from dtrak.build.exact import exact_of_evaluation
from dtrak.build.retrain import retrain_subsets
from dtrak.evaluation.exact import exact_influence
from dtrak.evaluation.measure import evaluate
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor
from dtrak.methods.exact import stored
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import subset_mask
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_json
from tests.helpers import call


def test_all_queries_are_computed_once_and_judged(fresh, monkeypatch):
    training = fresh.study.training.model_copy(update={"steps": 4, "epsilon": 1e-4, "learning_rate": 1e-4})
    truth = fresh.study.truth.model_copy(update={"generated": 3, "timesteps": 2})
    folder = StudyFolder(fresh.study.model_copy(update={"training": training, "truth": truth}))
    monkeypatch.setattr(exact, "TOGETHER", 3)
    reported = []
    assert exact_of_evaluation(folder, Local(1), lambda done, total: reported.append((done, total))) > 0
    assert reported == [(0, 5), (3, 5), (5, 5)]
    queries = query_set(folder).queries
    for query in queries[:1] + queries[-1:]:
        found = np.load(stored(folder, query))
        stored(folder, query).unlink()
        np.testing.assert_allclose(exact_influence(folder, [query]).scores[0], found, rtol=1e-4, atol=1e-9)
    stored(folder, queries[2]).unlink()
    reported.clear()
    exact_of_evaluation(folder, Local(1), lambda done, total: reported.append((done, total)))
    assert reported == [(4, 5), (5, 5)]
    assert exact_of_evaluation(folder, Local(1)) == 0
    retrain_subsets(folder, "lds", 6, 1, Local(1))
    retrain_subsets(folder, "lds", 3, 2, Local(1))
    rows = evaluate(Attributor(folder), [Setting("exact")])
    assert {row.queries for row in rows if row.setting == "exact"} == {"held-out", "generated"}
    for row in rows:
        assert row.other_seed == pytest.approx(lds_of_another_seed(folder, queries, row.queries == "generated"))


def lds_of_another_seed(folder, queries, generated):
    """The LDS of exact influence on the second seed's models, from their files."""
    found = []
    for place, query in enumerate(queries):
        if (query.settings is not None) != generated:
            continue
        predicted, measured = [], []
        for number in range(3):
            kept = read_json(folder.root / "truth" / "lds" / f"subset-{number:03}-seed-1.json")
            measured.append(np.mean(kept["losses"][place]))
            predicted.append(-np.load(stored(folder, query))[subset_mask(folder, "lds", number)].sum())
        found.append(spearmanr(predicted, measured).statistic)
    return np.mean(found)


def test_the_command_takes_no_image_beside(source):
    study = source / "tiny.yaml"
    assert call("exact", study, "--evaluation", "--seed", 1).exit_code == 2
    assert "--evaluation" in call("exact", study).output


@pytest.mark.usefixtures("fresh")
def test_the_command(source):
    assert "grew" in call("exact", source / "tiny.yaml", "--evaluation", "--workers", 1).output
    assert "before" in call("exact", source / "tiny.yaml", "--evaluation", "--workers", 1).output
