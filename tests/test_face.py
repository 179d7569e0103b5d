"""The Python face: what ``import dtrak`` gives, how light it is, and that it answers as the command line does."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dtrak
from dtrak.utils.errors import DtrakError
from tests import oracle
from tests.helpers import call


def test_importing_takes_no_torch():
    for used in ("dtrak; dtrak.Kernel; dtrak.Setting", "index_builder.cli"):
        code = (
            f"import {used}; import sys; assert not {{'torch', 'faiss', 'streamlit', 'diffusers'}} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_described():
    for name in dtrak.__all__:
        assert getattr(dtrak, name).__doc__, name
    with pytest.raises(AttributeError):
        dtrak.nothing  # noqa: B018


def test_methods_are_a_table():
    table = dtrak.methods()
    assert table.loc["dtrak", "title"] == "D-TRAK"
    assert (table[["formula", "source", "needs"]] != "").all(axis=None)


@pytest.fixture
def study(tiny, source):
    return dtrak.open_study(str(source / "tiny.yaml"))


def test_it_answers_as_the_command_line_does(study, source):
    picture = study.generate(seed=3, steps=5)
    ranking = study.attribute(picture, method="dtrak", damping=0.5, top=4)
    arguments = ("attribute", source / "tiny.yaml", "--seed", 3, "--steps", 5, "--damping", 0.5, "--top", 4, "--json")
    answer = json.loads(call(*arguments).stdout)
    assert [s.record.id for s in ranking.proponents] == [p["id"] for p in answer["proponents"]]
    assert picture._repr_png_().startswith(b"\x89PNG")
    np.testing.assert_array_equal(study.scores([picture], damping=0.5)[0], ranking.scores)


def test_pictures_from_anywhere_are_read_alike(study, tmp_path):
    picture = study.generate(seed=3, steps=5)
    picture.image.save(tmp_path / "picture.png")
    expected = study.attribute(picture.image).scores
    for same in (np.asarray(picture.image), tmp_path / "picture.png", str(tmp_path / "picture.png")):
        np.testing.assert_array_equal(study.attribute(same).scores, expected)
    with pytest.raises(DtrakError, match="shape"):
        study.attribute(np.zeros((4, 4)))
    with pytest.raises(DtrakError, match="no class"):
        study.attribute(picture.image, label="oval")


def test_a_transparent_picture_is_read_on_white_from_file_and_memory_alike(study, tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:9, 3:12] = (200, 30, 60, 255)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "clear.png")
    of_file = study.attribute(tmp_path / "clear.png").scores
    np.testing.assert_array_equal(study.attribute(Image.open(tmp_path / "clear.png")).scores, of_file)


def test_whole_numbers_and_numpys_are_dampings():
    assert dtrak.Setting("dtrak", damping=1) == dtrak.Setting("dtrak", damping=np.float32(1))


def test_a_name_that_is_taken_and_a_file_that_is_missing_are_refused(study, tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    with pytest.raises(DtrakError, match="'demo' is the name of a study"):
        dtrak.open_study(dtrak.StudyConfig(name="demo", data={"kind": "imagefolder", "path": "x"}, resolution=16))
    assert not (tmp_path / "demo").exists()
    hub = dtrak.StudyConfig(name="flowers", data={"kind": "hub", "path": "somebody/flowers"}, resolution=16)
    assert dtrak.open_study(hub).config.data.path == "somebody/flowers"
    with pytest.raises(DtrakError, match="Cannot read"):
        study.attribute(tmp_path / "missing.png")


def test_no_pictures_give_no_rows_and_a_device_opens_anew(study):
    assert study.scores([]).shape == (0, 14)
    assert dtrak.open_study(study) is study
    assert dtrak.open_study(study, device="cuda").device == "cuda"


def test_a_study_made_in_python_is_found_by_its_name(source, tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.chdir(source)
    config = dtrak.StudyConfig(
        name="mine", data={"kind": "imagefolder", "path": "images"}, resolution=16,
        model={"path": "model", "classes": {"round": 1, "square": 2}, "null_class": 0},
        features=[{"output": "mean-squared-l2-norm", "timesteps": 2, "projection_dim": 16}],
    )  # fmt: skip
    made = dtrak.open_study(config).build(index_only=True)
    monkeypatch.chdir(tmp_path)
    again = dtrak.open_study("mine")
    assert again.config.data.path == str(source / "images")
    picture = made.generate(seed=1, steps=3)
    np.testing.assert_array_equal(again.attribute(picture).scores, made.attribute(picture).scores)


def test_evaluate_reads_what_was_measured(study):
    table = study.evaluate()
    assert {"setting", "queries", "lds_crossfit", "interval"} <= set(table.columns)
    assert "dtrak" in set(table.method)


def test_features_of_ones_own_equal_the_oracle():
    random = np.random.default_rng(0)
    phi, queries = random.standard_normal((20, 6)), random.standard_normal((3, 6))
    features = dtrak.Features(phi)
    for query, scores in zip(queries, features.scores(queries, damping=0.3), strict=True):
        np.testing.assert_allclose(scores, oracle.scores(phi, query, 0.3), rtol=1e-8)
    np.testing.assert_allclose(features.scores(queries[0]), phi @ queries[0])
    assert features.rank(phi[4] * 100, top=1)[0][0] == "4" or len(features.rank(phi[4], top=3)) == 3
    unit = np.trace(phi.T @ phi) / 6
    own = np.einsum("ni,ij,nj->n", phi, np.linalg.inv(phi.T @ phi + 0.3 * unit * np.eye(6)), phi)
    np.testing.assert_allclose(features.self_influence(0.3), own, rtol=1e-8)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.array([[1.0, np.nan]])])
def test_features_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="finite array of shape"):
        dtrak.Features(wrong)


def test_a_file_that_is_no_image_is_refused(study, tmp_path):
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(DtrakError, match="Cannot use"):
        study.attribute(tmp_path / "x.png")
    assert isinstance(study.generate(seed=1, steps=2).image, Image.Image)
