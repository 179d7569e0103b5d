"""The command line, as called by a user or a program."""

import json

import numpy as np
import pytest

from dtrak.evaluation.counterfactual import COMPARED
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from tests import oracle
from tests.conftest import drawn_image
from tests.helpers import call


def test_help_names_every_command():
    text = call("--help").stdout
    for command in (
        "studies",
        "prepare",
        "plan",
        "train",
        "build",
        "merge",
        "retrain",
        "evaluate",
        "counterfactual",
        "verify",
        "attribute",
        "scores",
    ):
        assert command in text


def test_attribute_json_is_the_oracles_answer_and_repeats(tiny, source):
    arguments = ("attribute", source / "tiny.yaml", "--seed", 3, "--steps", 5, "--damping", 0.5, "--top", 4, "--json")
    first = call(*arguments).stdout
    assert call(*arguments).stdout == first
    answer = json.loads(first)
    assert list(answer) == [
        "study",
        "query",
        "method",
        "setting",
        "damping",
        "fingerprint",
        "verdict",
        "measured",
        "proponents",
        "opponents",
    ]
    assert set(answer["verdict"]) == {"p_value", "null", "null_size", "named"}
    assert answer["verdict"]["null_size"] == 80
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.queries import generate_query
    from dtrak.models.generation import GenerationSettings

    attributor = Attributor(tiny)
    query = generate_query(attributor, GenerationSettings(3, 5))
    (feature,) = attributor.features(query, [Setting("dtrak")]).values()
    index = attributor.index("dtrak")
    expected = oracle.scores(index.features, feature.vector, 0.5)
    order = [i for i in np.argsort(-expected)[:4] if expected[i] > 0]
    assert [p["id"] for p in answer["proponents"]] == [tiny.table.train_ids[i] for i in order]
    np.testing.assert_allclose([p["score"] for p in answer["proponents"]], expected[order], rtol=1e-5)
    assert all(o["score"] < 0 for o in answer["opponents"])
    assert {"id", "score", "label", "caption", "creator", "licence"} == set(answer["proponents"][0])


def test_scores_equal_single_attributions(tiny, source, tmp_path):
    for i in (100, 101):
        drawn_image(i).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    out = tmp_path / "out.npz"
    call("scores", source / "tiny.yaml", "--queries", tmp_path, "--method", "trak", "--out", out)
    with np.load(out) as found:
        assert found["scores"].shape == (2, 14)
        assert found["scores"].dtype == np.float32
        assert found["train_ids"].tolist() == tiny.table.train_ids
        assert found["query_files"].tolist() == ["100.png", "101.png"]
        first = call(
            "attribute",
            source / "tiny.yaml",
            "--image",
            tmp_path / "100.png",
            "--method",
            "trak",
            "--top",
            14,
            "--json",
        )
        by_id = {p["id"]: p["score"] for side in ("proponents", "opponents") for p in json.loads(first.stdout)[side]}
        for score, sample_id in zip(found["scores"][0], found["train_ids"], strict=True):
            assert by_id[sample_id] == pytest.approx(float(score), rel=1e-4)


def test_studies_and_verify(tiny, source):
    assert "tiny is intact" in call("verify", source / "tiny.yaml").stdout.replace("'", "")
    assert any(s["name"] == "demo" for s in json.loads(call("studies", "--json").stdout))


def test_evaluate_prints_a_table_and_rows(tiny, source):
    rows = json.loads(call("evaluate", source / "tiny.yaml", "--workers", 1, "--json").stdout)
    keys = {"method", "setting", "queries", "lds_crossfit", "lds_oracle", "interval", "subset_models"}
    assert all(keys <= set(row) for row in rows)
    assert {"dtrak", "trak", "random", "pixel-cos", "journey-trak"} <= {row["method"] for row in rows}
    table = call("evaluate", source / "tiny.yaml", "--workers", 1, "--missing-only").stdout
    assert "6 subset models" in table
    assert "D-TRAK · K = 1" in table


def test_counterfactual_prints_means_and_pairs(fresh, source):
    call("build", source / "tiny.yaml", "--index-only", "--workers", 1)
    query_set(fresh)
    arguments = ("counterfactual", source / "tiny.yaml", "--queries", 1, "--remove", 2, "--workers", 1)
    assert "Random, matched to D-TRAK" in call(*arguments).stdout
    content = json.loads(call(*arguments, "--json").stdout)
    assert {pair["method"] for pair in content["pairs"]} == set(COMPARED)
    assert content["behind"]["removed"] == 2


def test_failures_say_what_to_do(fresh, source):
    with pytest.raises(DtrakError, match="index_builder build"):
        call("attribute", source / "tiny.yaml", "--seed", 1)
    assert call("attribute", source / "tiny.yaml").exit_code == 2
    with pytest.raises(DtrakError, match="no study"):
        call("build", "nothing")


def test_an_index_of_other_weights_is_refused(fresh, source, tmp_path):
    from dtrak.build.features import build_features, build_indexes
    from dtrak.config import load_study
    from dtrak.methods.attributor import Attributor
    from dtrak.study.folder import StudyFolder
    from tests.conftest import write_study

    build_indexes(fresh, build_features(fresh, Local(1)))
    changed = source / "other"
    changed.mkdir(exist_ok=True)
    features = [{"output": "mean-squared-l2-norm", "timesteps": 4, "projection_dim": 64}]
    data = {"kind": "imagefolder", "path": "../images", "holdout": 0.125}
    model = {"path": "../model", "classes": {"round": 1, "square": 2}, "null_class": 0}
    study = load_study(str(write_study(changed, features=features, data=data, model=model)))
    attributor = Attributor(StudyFolder(study))
    with pytest.raises(DtrakError, match="timesteps"):
        attributor.index("dtrak")
