"""Configurations that cannot be read are refused in a few lines that name the problem."""

import pytest

from dtrak.config import load_study, study_names
from dtrak.study.folder import StudyFolder, base_path
from dtrak.utils.errors import DtrakError

DATA = "data: {kind: imagefolder, path: images}\nresolution: 16\n"
TEMPLATE = "resolution: 16\ndata: {kind: imagefolder, path: a, caption_template: "
WRONG = {
    "a date that does not exist": "title: 2026-13-45\n" + DATA,
    "a tag that does not fit": "resolution: !!int abc\n",
    "a number too long to read": DATA + f"guidance: {'9' * 5000}\n",
    "keys that are no names": DATA + "1: a\nnull: b\ntrue: c\n",
    "deep nesting": "data: " + "[" * 500 + "]" * 500 + "\n",
    "very deep nesting": "data: " + "[" * 20_000 + "]" * 20_000 + "\n",
    "an output that is a list": DATA + "features: [{output: [1]}]\n",
    "a wide placeholder": TEMPLATE + "'{label:>999999999}'}\n",
    "an attribute in a placeholder": TEMPLATE + "'{label.a}'}\n",
    "a list": "[1, 2]\n",
    "nothing": "",
    "binary": "\x00\x01",
    "a bomb of aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n" + DATA,
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_no_study_is_refused(tmp_path, name):
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG[name])
    with pytest.raises(DtrakError) as refused:
        load_study(str(path))
    assert str(path) in refused.value.message
    assert len(refused.value.message) < 10_000


def test_many_problems_are_cut_short(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(DATA + "".join(f"unknown_{i}: 1\n" for i in range(20_000)))
    with pytest.raises(DtrakError, match="and 19990 more"):
        load_study(str(path))


def test_a_study_is_not_its_own_base(tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_CONFIGS", str(tmp_path))
    for name, base in (("one", "two"), ("two", "one"), ("self", "self")):
        (tmp_path / f"{name}.yaml").write_text(DATA + f"model: {{base: {base}}}\n")
    for name in ("one", "self"):
        with pytest.raises(DtrakError, match="goes round"):
            base_path(StudyFolder(load_study(name)).study)


def test_a_base_is_a_models_directory_or_a_study(tmp_path, source, monkeypatch):
    monkeypatch.setenv("DTRAK_CONFIGS", str(tmp_path))
    (tmp_path / "model").symlink_to(source / "model")
    (tmp_path / "first").mkdir()  # holds no model, so the study is meant
    (tmp_path / "first.yaml").write_text(DATA + "model: {base: model}\n")
    (tmp_path / "second.yaml").write_text(DATA + "model: {base: first}\n")
    for name in ("first", "second"):
        assert base_path(load_study(name)) == (source / "model").resolve()


def test_a_damaged_note_of_one_study_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    for name, text in (("damaged", "{"), ("list", "[1]"), ("binary", "\x00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(text)
    assert {"demo", "damaged"} <= set(study_names())
    assert load_study("demo").name == "demo"
    with pytest.raises(DtrakError, match="no study 'damaged'"):
        load_study("damaged")


def test_an_embedding_folder_lies_beside_the_yaml(tmp_path):
    (tmp_path / "clip").mkdir()
    path = tmp_path / "own.yaml"
    path.write_text(DATA + "embedding: clip\n")
    assert load_study(str(path)).embedding_source == str(tmp_path / "clip")
    path.write_text(DATA + "embedding: openai/clip-vit-base-patch32\n")
    assert load_study(str(path)).embedding_source == "openai/clip-vit-base-patch32"
