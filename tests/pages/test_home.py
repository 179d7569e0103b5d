"""Home by Streamlit's test client: the example, what a study needs, and what starts without torch."""

import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from dtrak.app.elements import plain
from dtrak.app.example import examples_of, first_example, save_example_features, write_example
from dtrak.app.runs import RunStore
from dtrak.app.service import study_service
from dtrak.config import ROOT, ExampleConfig, load_study
from dtrak.evaluation.series import removal_series
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor
from dtrak.methods.exact import path_of
from dtrak.methods.query import load_query_set
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import read_json, write_json, write_npy
from tests.pages.client import text


def test_home(app):
    app.run()
    assert not app.exception
    assert "14 training images" in text(app)


def test_home_shows_the_example_and_what_happens_without_its_sources(app, tiny):
    attributor = Attributor(tiny)
    removal_series(attributor, *first_example(attributor), Local(1))
    write_example(tiny)
    save_example_features(tiny)
    app.run()
    assert not app.exception
    assert "unrelated images" in text(app)
    service = study_service(str(tiny.study.source))
    fingerprint = service.model_fingerprint
    for one in examples_of(tiny.study, service.classes):
        settings = GenerationSettings(one.seed, one.steps, one.label, tiny.study.guidance)
        run = service.runs.load(service.runs.generated_id(fingerprint, settings))
        assert service.attribute(run, Setting("dtrak"), 3) is not None  # nothing is left to compute
    app.select_slider(key="removed").set_value(1).run()
    assert not app.exception
    assert "without 1 random images" in text(app)


def test_an_example_that_is_an_evaluation_query_has_its_pixels(tiny, tmp_path, monkeypatch):
    query = load_query_set(tiny).queries[-1]
    example = ExampleConfig(seed=query.settings.seed, label=query.label, steps=query.settings.steps)
    study = tiny.study.model_copy(update={"examples": (example,)})
    shutil.copytree(tiny.root, tmp_path / "tiny", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    monkeypatch.setattr("dtrak.models.sampling.generate", lambda model, wanted: 1 / 0)
    folder = StudyFolder(study)
    write_example(folder)
    (run,) = RunStore(folder.runs).latest(2)
    np.testing.assert_array_equal(run.pixels, query.pixels)


@pytest.mark.parametrize(("growth", "method"), [(2.0, "Exact influence"), (1e9, "D-TRAK")])
def test_the_example_shows_exact_influence_where_the_training_is_smooth(tiny, tmp_path, monkeypatch, growth, method):
    shutil.copytree(tiny.root, tmp_path / "tiny")
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    folder = StudyFolder(tiny.study)
    query, _ = first_example(Attributor(folder))
    scores = np.arange(14, dtype=np.float32)
    write_npy(path_of(folder, query), scores)
    write_json(path_of(folder, query).with_suffix(".json"), {"growth": growth})
    write_example(folder)
    found = read_json(folder.index / "example.json")
    assert found["method"] == method
    if method == "Exact influence":
        assert [tile["id"] for tile in found["tiles"]] == folder.table.train_ids[:-7:-1]
        assert "differentiated" in found["verdict"]


def test_home_and_about_do_without_what_is_slow_to_import(tiny, source, monkeypatch):
    monkeypatch.setenv("DTRAK_CONFIGS", str(source))
    program = """
import sys, dtrak.app.widgets
from streamlit.testing.v1 import AppTest
dtrak.app.widgets.load = lambda: None
app = AppTest.from_file("app.py", default_timeout=60).run()
titles = [app.title[0].value, app.switch_page("pages/about.py").run().title[0].value]
assert not app.exception
slow = {"torch", "diffusers", "peft", "transformers", "faiss", "scipy", "numba"}
print(*titles, *slow & sys.modules.keys(), sep=";")
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "Which training images shaped this one?;About"


def test_what_needs_torch_waits_for_it(monkeypatch):
    def script():
        import dtrak.app.widgets

        dtrak.app.widgets.wait_until_loaded()

    loading = threading.Thread(target=time.sleep, args=(1,))
    loading.start()
    monkeypatch.setattr("dtrak.app.widgets.load", lambda: loading)
    assert not AppTest.from_function(script).run().exception
    assert not loading.is_alive()


def test_home_without_an_index_gives_the_command(app, monkeypatch, tmp_path):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    app.run()
    assert not app.exception
    assert "index_builder build tiny" in app.code[0].value


def test_a_study_of_the_paper_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    app = AppTest.from_file(ROOT / "app.py", default_timeout=60)
    app.run()
    app.selectbox(key="study").set_value("cifar2").run()
    assert not app.exception
    assert [line.split()[3] for line in app.code[0].value.splitlines()] == ["prepare", "train", "build"]
    assert "uoft-cs/cifar10" in text(app)
    assert "1 A100" in text(app)
    assert plain(load_study("cifar2").description) in text(app)


def test_a_study_is_described_on_home_and_in_the_sidebar(monkeypatch, tmp_path):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path))
    app = AppTest.from_file(ROOT / "app.py", default_timeout=60).run()
    description = plain(load_study("demo").description)
    assert description
    assert description in [caption.value for caption in app.sidebar.caption]
    assert description in [element.value for element in app.main.markdown]
