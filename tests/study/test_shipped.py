"""What ships with the studies of faces belongs to the models and data that ship with them."""

import numpy as np
import pytest

from dtrak.config import load_study
from dtrak.data import prepare
from dtrak.evaluation.results import load_evaluation
from dtrak.methods.exact import stored
from dtrak.methods.query import load_query_set
from dtrak.methods.subsets import load_subsets
from dtrak.models.diffusion import EpsilonDiffusion
from dtrak.models.flow_matching import FlowMatching
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_json

SIZES = {"demo": (730, 300), "demo-flow": (730, 300), "demo-exact": (84, 32)}  # training images, queries


@pytest.fixture(params=list(SIZES))
def shipped(request, tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    folder = StudyFolder(load_study(request.param))
    prepare(folder.study, folder.data)
    return folder


def test_the_truth_is_of_this_model_recipe_and_data(shipped):
    truth, asked = load_subsets(shipped, "lds"), load_query_set(shipped)
    assert len(truth.masks) >= 16
    images, queries = SIZES[shipped.study.name]
    assert truth.masks.shape[1] == shipped.table.train_size == images
    assert truth.losses.shape == (len(truth.masks), len(asked.queries)) == (len(truth.masks), queries)
    if shipped.study.name != "demo-flow":
        evaluation = load_evaluation(shipped)
        assert evaluation is not None
        assert not evaluation.stale


def test_the_model_loads_and_has_its_noise_process(shipped):
    model = load_study_model(shipped)
    kind = FlowMatching if shipped.study.name == "demo-flow" else EpsilonDiffusion
    assert type(model.process) is kind
    assert all("lora_" in name for name in model.parameters())


@pytest.mark.parametrize("shipped", ["demo-exact"], indirect=True)
def test_the_exact_influence_of_all_queries_ships(shipped):
    for query in load_query_set(shipped).queries:
        scores = np.load(stored(shipped, query))
        assert scores.shape == (84,)
        assert (scores > 0).any()
        assert read_json(stored(shipped, query).with_suffix(".json"))["growth"] < 10
