"""Each page by AppTest: it renders, and its empty and error states say what to do."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
from streamlit.testing.v1 import AppTest

from dtrak.analysis.significance import null_of
from dtrak.app.elements import plain
from dtrak.app.example import first_example, write_example
from dtrak.app.jobs import queue, queue_beside, retraining_queue
from dtrak.app.runs import read_settings
from dtrak.app.service import study_service
from dtrak.config import ROOT, load_study
from dtrak.evaluation.series import removal_series
from dtrak.execution.engines import Local
from dtrak.gradients.region import Region
from dtrak.methods.attributor import Attributor
from dtrak.methods.settings import Setting
from dtrak.models.sampling import GenerationSettings
from tests.helpers import wait_until


@pytest.fixture
def app(tiny, source, monkeypatch):
    monkeypatch.setenv("DTRAK_CONFIGS", str(source))
    return AppTest.from_file(ROOT / "app.py", default_timeout=60)


@pytest.fixture
def run(tiny, source, monkeypatch):
    monkeypatch.setenv("DTRAK_CONFIGS", str(source))
    service = study_service("tiny")
    job = service.generate([GenerationSettings(3, 5, "round", 1.0)])
    wait_until(lambda: not job.active, 30)
    found = service.runs.load(job.result[0])
    features = service.compute_features(found, [Setting("dtrak")])
    wait_until(lambda: not features.active, 30)
    return found


def text(app):
    return " ".join(element.value for element in [*app.markdown, *app.info, *app.warning, *app.error, *app.caption])


def test_home(app):
    app.run()
    assert not app.exception
    assert "14 training images" in text(app)


def test_home_shows_the_example_and_what_happens_without_its_sources(app, tiny):
    attributor = Attributor(tiny)
    removal_series(attributor, *first_example(attributor), Local(1))
    write_example(tiny)
    app.run()
    assert not app.exception
    assert "unrelated images" in text(app)
    app.select_slider(key="removed").set_value(1).run()
    assert not app.exception
    assert "without 1 random images" in text(app)


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


def test_generate_with_a_text_to_image_model(paintings, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(paintings / "workspace"))
    monkeypatch.setenv("DTRAK_CONFIGS", str(paintings))
    app = AppTest.from_file(ROOT / "app.py", default_timeout=60)
    app.run()
    app.switch_page("pages/generate.py").run()
    assert not app.exception
    assert app.text_area(key="prompt").value.endswith("painting")
    assert app.slider(key="guidance").value == 2.0
    app.text_area(key="prompt").set_value("a round square")
    app.text_input(key="negative").set_value("round")
    app.slider(key="lora").set_value(0.5)
    app.slider(key="steps").set_value(5)
    app.button(key="generate").click().run()
    assert not app.exception
    service = study_service("paintings")
    wanted = GenerationSettings(7, 5, "a round square", 2.0, "round", 0.5)
    wait_until(lambda: service.find([wanted]) is not None, 30)
    app.run()
    (run,) = service.find([wanted])
    assert app.button(key=f"attribute-{run.id}")
    assert read_settings(service.runs.image_bytes(run)) == wanted
    app.query_params["run"] = run.id
    app.switch_page("pages/attribution.py").run()
    assert not app.exception
    assert "LoRA scale 0.5" in text(app)
    next(b for b in app.button if b.label == "Attribute the held-out image").click().run()
    assert service.runs.latest(1)[0].settings is None
    assert service.runs.latest(1)[0].label.endswith("painting")  # the caption, not the style


def test_a_lora_scale_of_another_study_stays_there(app, run):
    app.run()
    app.session_state["lora"] = 0.5
    app.switch_page("pages/generate.py").run()
    app.number_input(key="seed").set_value(3)
    app.slider(key="steps").set_value(5)
    app.run()
    assert app.button(key=f"attribute-{run.id}")  # found, so at scale 1


def test_generate(app, run):
    app.run()
    app.switch_page("pages/generate.py").run()
    assert not app.exception
    assert "press Generate" in text(app)
    app.number_input(key="seed").set_value(3)
    app.slider(key="steps").set_value(5)
    app.run()
    assert app.button(key=f"attribute-{run.id}")


def test_attribution_without_a_run(app):
    app.run()
    app.switch_page("pages/attribution.py").run()
    assert not app.exception


def test_attribution_of_an_unknown_run(app):
    app.query_params["run"] = "nothing"
    app.run()
    app.switch_page("pages/attribution.py").run()
    assert "There is no run" in text(app)


def test_attribution(app, run):
    app.query_params["run"] = run.id
    app.run()
    app.query_params["run"] = run.id
    app.switch_page("pages/attribution.py").run()
    assert not app.exception
    assert "unrelated images" in text(app)
    expected = {
        "opponents": "Removing", "groups": "Effective number of contributors", "similar": "whatever the model learnt",
    }  # fmt: skip
    for view, words in expected.items():
        app.segmented_control(key="view").set_value(view).run()
        assert not app.exception
        assert words in text(app)
    app.segmented_control(key="section").set_value("downloads").run()
    assert not app.exception
    assert "dtrak.open_study" in app.code[1].value


def test_a_training_image_opens_beside_the_gallery_and_is_pinned(app, run):
    app.run()
    best = study_service("tiny").attribute(run, Setting("dtrak"), 10).proponents[0].record
    app.query_params.update({"run": run.id, "sample": best.id})
    app.switch_page("pages/attribution.py").run()
    assert not app.exception
    assert "rank 1 of 14" in text(app)
    app.button(key="panel-pin").click().run()
    app.segmented_control(key="section").set_value("what-if").run()
    app.segmented_control(key="what_if_kind").set_value("Pinned").run()
    assert not app.exception
    assert "without these 1 image" in text(app)
    app.button(key="panel-close").click().run()
    assert "rank 1 of 14" not in text(app)
    app.query_params["sample"] = "nothing"
    app.run()
    assert not app.exception


def test_a_part_of_the_image_is_asked_about(app, run):
    app.run()
    app.query_params.update({"run": run.id, "region": "0,0,0.5,0.5"})
    app.switch_page("pages/attribution.py").run()
    part = replace(run, region=Region(0, 0, 0.5, 0.5))
    service = study_service("tiny")
    wait_until(lambda: service.features(part, [Setting("dtrak")]) is not None, 30)
    app.run()
    assert not app.exception
    assert "compares whole images" in text(app)
    app.segmented_control(key="section").set_value("downloads").run()
    assert "region=(0, 0, 0.5, 0.5)" in app.code[1].value
    assert "--region 0,0,0.5,0.5" in app.code[2].value
    whole, asked = (service.attribute(one, Setting("dtrak"), 10).scores for one in (run, part))
    assert abs(whole - asked).max() > 0
    edges = [slider for slider in app.slider if "edge" in slider.label]
    assert [slider.value for slider in edges] == [(0, 50), (0, 50)]
    edges[0].set_value((50, 100))
    next(b for b in app.button if b.label == "Ask about this part").click().run()
    assert app.query_params["region"] in ("0.5,0,1,0.5", ["0.5,0,1,0.5"])
    app.button(key="region-clear").click().run()
    assert "compares whole images" not in text(app)
    app.query_params["region"] = "nonsense"
    app.run()
    assert "no part of an image" in text(app)


def test_the_timeline_shows_a_source_for_each_timestep(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.switch_page("pages/attribution.py").run()
    app.segmented_control(key="section").set_value("timeline").run()
    wait_until(lambda: not queue().active(), 30)
    app.run()
    assert not app.exception
    assert {f"t = {t}" for t in (0, 200, 400, 600, 800)} <= {c.value for c in app.caption}


def test_attribution_in_a_large_study_ranks_before_the_significance_test(app, run, monkeypatch):
    monkeypatch.setattr("dtrak.app.evidence.LARGE", 0)
    held = threading.Event()
    monkeypatch.setattr("dtrak.app.evidence.null_of", lambda *a: held.wait(30) and null_of(*a))
    app.run()
    app.query_params.update({"run": run.id, "damping_dtrak": "0.562"})  # a setting without saved evidence
    app.switch_page("pages/attribution.py").run()
    assert not app.exception
    assert "Removing the **proponents**" in text(app)
    assert "unrelated images" not in text(app)
    held.set()
    wait_until(lambda: not queue_beside().active(), 30)
    app.run()
    assert "unrelated images" in text(app)
    app.pills(key="evidence_kind").set_value("Stability and hubs").run()
    assert "resamples" in text(app)


def test_the_exact_influence_is_computed_and_compared(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.switch_page("pages/attribution.py").run()
    app.segmented_control(key="section").set_value("exact").run()
    assert "differentiates through the whole training" in text(app)
    app.button(key="exact_go").click().run()
    wait_until(lambda: not retraining_queue().active(), 60)
    app.run()
    assert not app.exception
    assert "Rank correlation of the ranking above with the exact influence" in text(app)


def test_ablate(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.switch_page("pages/ablate.py").run()
    assert not app.exception
    assert "Ranked 14 images" in text(app)
    assert "Cost: " in text(app)
    before = app.selectbox(key="ablate_timesteps").value
    app.selectbox(key="ablate_timesteps").set_value(1 if before != 1 else 5).run()
    assert not app.exception
    assert "Overlap with previous" in {m.label for m in app.metric}


def test_all_values_of_a_choice_side_by_side(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.switch_page("pages/ablate.py").run()
    for choice in ("damping", "timesteps", "output"):
        app.selectbox(key="multiples").set_value(choice).run()
        wait_until(lambda: not queue().active(), 30)
        app.run()
        assert not app.exception
        assert "Each column is D-TRAK" in text(app)


def test_ablate_survives_a_nonsense_link(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.query_params["pins"] = "foo;dtrak,timesteps=500"
    app.query_params["setting"] = "dtrak,timesteps=1"
    app.switch_page("pages/ablate.py").run()
    assert not app.exception
    assert "There is no method 'foo'" in text(app)
    assert app.selectbox(key="ablate_timesteps").value == 1


def test_ablate_takes_damping_from_a_link(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.query_params["setting"] = "dtrak,damping=0.1"
    app.switch_page("pages/ablate.py").run()
    assert not app.exception
    assert app.select_slider(key="ablate_power_dtrak").value == -1
    app.select_slider(key="ablate_power_dtrak").set_value(0.55).run()
    assert not app.exception
    assert "damping=3.548" in str(app.query_params["setting"])


def test_ablate_without_a_run(app):
    app.run()
    app.switch_page("pages/ablate.py").run()
    assert not app.exception


def test_compare(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.query_params["lanes"] = "trak;dtrak;nonsense"
    app.switch_page("pages/compare.py").run()
    assert not app.exception
    assert "There is no method 'nonsense'" in text(app)


def test_explore(app, run):
    app.run()
    app.query_params["run"] = run.id
    app.switch_page("pages/explore.py").run()
    assert not app.exception
    assert "No image is selected" in text(app)
    for colour in ("label", "influence", "self-influence", "hubness"):
        app.selectbox(key="map_colour").set_value(colour).run()
        assert not app.exception
    app.radio(key="map_kind").set_value("images").run()
    assert not app.exception


def test_sample(app, tiny):
    record = tiny.table.records[0]
    app.run()
    app.query_params["id"] = record.id
    app.switch_page("pages/sample.py").run()
    assert not app.exception
    assert app.title[0].value == record.caption
    assert record.creator in text(app)


def test_unknown_sample(app):
    app.run()
    app.query_params["id"] = "nothing"
    app.switch_page("pages/sample.py").run()
    assert "no such training image" in text(app)


def test_about(app):
    app.run()
    app.switch_page("pages/about.py").run()
    assert not app.exception
    assert "What it is not" in text(app)


@pytest.mark.parametrize("package", ["faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"])
def test_about_names_the_faiss_that_is_installed(app, monkeypatch, package):
    def version(name):
        if name.startswith("faiss") and name != package:
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr("importlib.metadata.version", version)
    app.run()
    app.switch_page("pages/about.py").run()
    assert not app.exception
    assert [line for line in app.code[0].value.splitlines() if "faiss" in line] == [f"{package} 1.2.3"]


def test_evaluate(app):
    app.run()
    app.switch_page("pages/evaluate.py").run()
    assert not app.exception
    assert "6 subset models" in text(app)
    assert "the best baseline" in text(app)
    app.segmented_control(key="queries").set_value("held-out").run()
    expected = {
        "explanations": "Negative controls", "significance": "standard deviations", "ablations": "6 subset models",
        "counterfactuals": "No counterfactuals yet", "published": "Not comparable",
    }  # fmt: skip
    for question, words in expected.items():
        app.segmented_control(key="question").set_value(question).run()
        assert not app.exception
        assert words in text(app) + " ".join(i.value for i in app.info)
    app.segmented_control(key="question").set_value("ablations").run()
    app.segmented_control(key="ablation").set_value("timesteps").run()
    assert not app.exception


def test_evaluate_before_anything_was_measured(app, tiny, monkeypatch):
    monkeypatch.setattr("dtrak.app.service.load_evaluation", lambda folder: None)
    monkeypatch.setattr("dtrak.app.service.load_counterfactuals", lambda folder: None)
    study_service("tiny").__dict__.pop("evaluation", None)
    app.run()
    app.switch_page("pages/evaluate.py").run()
    study_service("tiny").__dict__.pop("evaluation", None)
    assert not app.exception
    assert "not evaluated yet" in text(app)
    assert "index_builder retrain tiny" in app.code[0].value


def test_ledger(app, run):
    app.run()
    app.switch_page("pages/ledger.py").run()
    assert not app.exception
    assert "unattributed" in text(app)
    assert "of the training images" in text(app)
    assert "LDS" in text(app)
    app.selectbox(key="ledger_image").set_value(run.id).run()
    assert not app.exception
    assert "1 is too few" in text(app)
