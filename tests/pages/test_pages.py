"""The other pages by Streamlit's test client."""

from importlib.metadata import PackageNotFoundError

import pytest

from dtrak.app.explore import groups_of
from dtrak.app.service import study_service
from tests.pages.client import text, visit


def test_compare(app, run):
    visit(app, "compare", run=run.id, lanes="trak;dtrak;nonsense")
    assert not app.exception
    assert "There is no method 'nonsense'" in text(app)


def test_compare_in_a_large_study_searches_the_index(app, run, other_run, scored):
    app.query_params.update({"run": run.id, "run2": other_run.id, "lanes": "trak;dtrak"})
    app.switch_page("pages/compare.py").run()
    for mode, title in (
        ("Methods on one picture", "Strongest disagreements"),
        ("One method on two pictures", "Strongest disagreements"),
        ("Why A rather than B", "B rather than A"),
    ):
        app.segmented_control(key="compare").set_value(mode).run()
        assert not app.exception
        assert not app.error
        assert title in {s.value for s in app.subheader}
    assert not scored


def test_explore(app, run):
    visit(app, "explore", run=run.id)
    assert not app.exception
    assert "No image is selected" in text(app)
    for colour in ("label", "influence", "self-influence", "hubness"):
        app.selectbox(key="map_colour").set_value(colour).run()
        assert not app.exception
    app.radio(key="map_kind").set_value("images").run()
    assert not app.exception
    title, rows = next(iter(groups_of(study_service("tiny").attributor.table).items()))
    app.selectbox(key="map_group").set_value(title).run()
    assert not app.exception
    assert f"{len(rows)} images" in text(app)


def test_explore_in_a_large_study_scores_only_what_is_on_the_map(app, run, scored):
    app.query_params.update({"run": run.id})
    app.switch_page("pages/explore.py").run()
    app.selectbox(key="map_colour").set_value("influence").run()
    title = next(iter(groups_of(study_service("tiny").attributor.table)))
    app.selectbox(key="map_group").set_value(title).run()
    assert not app.exception
    assert "of the positive scores by" in text(app)
    assert not scored


def test_sample(app, tiny):
    record = tiny.table.records[0]
    visit(app, "sample", id=record.id)
    assert not app.exception
    assert app.title[0].value == record.caption
    assert record.creator in text(app)


def test_unknown_sample(app):
    visit(app, "sample", id="nothing")
    assert "no such training image" in text(app)


def test_about(app):
    visit(app, "about")
    assert not app.exception
    assert "What it is not" in text(app)


@pytest.mark.parametrize("package", ["faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"])
def test_about_names_the_faiss_that_is_installed(app, monkeypatch, package):
    def version(name):
        if name.startswith("faiss") and name != package:
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr("importlib.metadata.version", version)
    visit(app, "about")
    assert not app.exception
    assert [line for line in app.code[0].value.splitlines() if "faiss" in line] == [f"{package} 1.2.3"]


def test_evaluate(app):
    visit(app, "evaluate")
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
    visit(app, "evaluate")
    study_service("tiny").__dict__.pop("evaluation", None)
    assert not app.exception
    assert "not evaluated yet" in text(app)
    assert "index_builder retrain tiny" in app.code[0].value


def test_ledger(app, run):
    visit(app, "ledger")
    assert not app.exception
    assert "unattributed" in text(app)
    assert "of the training images" in text(app)
    assert "LDS" in text(app)
    app.selectbox(key="ledger_image").set_value(run.id).run()
    assert not app.exception
    assert "1 is too few" in text(app)
