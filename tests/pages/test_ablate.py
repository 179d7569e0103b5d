"""Ablate by Streamlit's test client."""

from dtrak.app.ablate import POWERS
from dtrak.app.jobs import queue
from tests.helpers import wait_until
from tests.pages.client import text, visit


def test_ablate(app, run):
    visit(app, "ablate", run=run.id)
    assert not app.exception
    assert "Ranked 14 images" in text(app)
    assert "Cost: " in text(app)
    before = app.selectbox(key="ablate_timesteps").value
    app.selectbox(key="ablate_timesteps").set_value(1 if before != 1 else 5).run()
    assert not app.exception
    assert "Overlap with previous" in {m.label for m in app.metric}


def test_in_a_large_study_the_index_is_searched(app, run, scored, monkeypatch):
    on_request = [1.0] * len(POWERS)  # among more than 600 images
    monkeypatch.setattr("dtrak.app.ablate.damping_curve", lambda *a: on_request)
    app.query_params.update({"run": run.id})
    app.switch_page("pages/ablate.py").run()
    assert not app.exception
    assert "Searched 14 images" in text(app)
    app.select_slider(key="ablate_power_dtrak").set_value(1.0).run()
    assert not app.exception
    assert "Overlap with previous" in {m.label for m in app.metric}
    app.selectbox(key="multiples").set_value("damping").run()
    assert not app.exception
    assert not scored


def test_all_values_of_a_choice_side_by_side(app, run):
    visit(app, "ablate", run=run.id)
    for choice in ("damping", "timesteps", "output"):
        app.selectbox(key="multiples").set_value(choice).run()
        wait_until(lambda: not queue().active(), 30)
        app.run()
        assert not app.exception
        assert "Each column is D-TRAK" in text(app)


def test_ablate_survives_a_nonsense_link(app, run):
    visit(app, "ablate", run=run.id, pins="foo;dtrak,timesteps=500", setting="dtrak,timesteps=1")
    assert not app.exception
    assert "There is no method 'foo'" in text(app)
    assert app.selectbox(key="ablate_timesteps").value == 1


def test_ablate_takes_damping_from_a_link(app, run):
    visit(app, "ablate", run=run.id, setting="dtrak,damping=0.1")
    assert not app.exception
    assert app.select_slider(key="ablate_power_dtrak").value == -1
    app.select_slider(key="ablate_power_dtrak").set_value(0.55).run()
    assert not app.exception
    assert "damping=3.548" in str(app.query_params["setting"])


def test_ablate_without_a_run(app):
    visit(app, "ablate")
    assert not app.exception
