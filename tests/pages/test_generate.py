"""Generate by Streamlit's test client."""

from streamlit.testing.v1 import AppTest

from dtrak.app.runs import read_settings
from dtrak.app.service import study_service
from dtrak.config import ROOT
from dtrak.models.generation import GenerationSettings
from tests.helpers import wait_until
from tests.pages.client import text, visit


def test_generate_with_a_text_to_image_model(paintings, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(paintings / "workspace"))
    monkeypatch.setenv("DTRAK_CONFIGS", str(paintings))
    app = AppTest.from_file(ROOT / "app.py", default_timeout=60)
    visit(app, "generate")
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
    visit(app, "generate")
    assert not app.exception
    assert "press Generate" in text(app)
    app.number_input(key="seed").set_value(3)
    app.slider(key="steps").set_value(5)
    app.run()
    assert app.button(key=f"attribute-{run.id}")
