"""Attribution by Streamlit's test client: ranking, panel, region, timeline, exact influence."""

import threading
from dataclasses import replace

from dtrak.analysis.significance import null_of
from dtrak.app.jobs import queue, queue_beside, retraining_queue
from dtrak.app.service import study_service
from dtrak.gradients.region import Region
from dtrak.methods.settings import Setting
from tests.helpers import wait_until
from tests.pages.client import text, visit


def test_attribution_without_a_run(app):
    visit(app, "attribution")
    assert not app.exception


def test_attribution_of_an_unknown_run(app, run):
    app.query_params["run"] = "nothing"
    visit(app, "attribution")
    assert "There is no run" in text(app)
    app.run()
    assert "There is no run" in text(app)


def test_attribution(app, run):
    app.query_params["run"] = run.id
    visit(app, "attribution", run=run.id)
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
    visit(app, "attribution", run=run.id)
    app.segmented_control(key="section").set_value("timeline").run()
    wait_until(lambda: not queue().active(), 30)
    app.run()
    assert not app.exception
    assert {f"t = {t}" for t in (0, 200, 400, 600, 800)} <= {c.value for c in app.caption}


def test_attribution_in_a_large_study_ranks_before_the_significance_test(app, run, scored, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr("dtrak.app.evidence.null_of", lambda *a: held.wait(30) and null_of(*a))
    app.run()
    # A setting without saved evidence; near-duplicates are not known in large studies.
    app.query_params.update({"run": run.id, "damping_dtrak": "0.562", "collapse": "false"})
    app.switch_page("pages/attribution.py").run()
    assert not app.exception
    assert "Removing the **proponents**" in text(app)
    assert "unrelated images" not in text(app)
    assert not scored  # both ends come from the index
    held.set()
    wait_until(lambda: not queue_beside().active(), 30)
    app.run()
    assert "unrelated images" in text(app)
    app.pills(key="evidence_kind").set_value("Stability and hubs").run()
    assert "resamples" in text(app)


def test_the_exact_influence_is_computed_and_compared_and_what_if_uses_it(app, run, monkeypatch):
    visit(app, "attribution", run=run.id)
    app.segmented_control(key="section").set_value("exact").run()
    assert "differentiates through the whole training" in text(app)
    app.button(key="exact_go").click().run()
    wait_until(lambda: not retraining_queue().active(), 60)
    app.run()
    assert not app.exception
    assert "Rank correlation of the ranking above with the exact influence" in text(app)
    app.segmented_control(key="section").set_value("what-if").run()
    assert not app.exception
    assert "Exact influence predicts" in text(app)
    monkeypatch.setattr("dtrak.app.sections.what_if.SMOOTH", 0.0)
    app.run()
    assert "D-TRAK predicts" in text(app)
    assert "The exact influence is not used" in text(app)
