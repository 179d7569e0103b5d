"""What tests of pages share: the app in Streamlit's test client, and an attributed image."""

import pytest
from streamlit.testing.v1 import AppTest

from dtrak.app.service import study_service
from dtrak.config import ROOT
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from tests.helpers import wait_until


@pytest.fixture
def app(tiny, source, monkeypatch):
    monkeypatch.setenv("DTRAK_CONFIGS", str(source))
    return AppTest.from_file(ROOT / "app.py", default_timeout=60)


@pytest.fixture
def run(tiny, source, monkeypatch):
    return attributed(3, monkeypatch, source)


@pytest.fixture
def other_run(tiny, source, monkeypatch):
    return attributed(4, monkeypatch, source)


def attributed(seed, monkeypatch, source):
    """A generated image with its features for TRAK and D-TRAK."""
    monkeypatch.setenv("DTRAK_CONFIGS", str(source))
    service = study_service("tiny")
    job = service.generate([GenerationSettings(seed, 5, "round", 1.0)])
    wait_until(lambda: not job.active, 30)
    found = service.runs.load(job.result[0])
    features = service.compute_features(found, [Setting("dtrak"), Setting("trak")])
    wait_until(lambda: not features.active, 30)
    return found


@pytest.fixture
def scored(monkeypatch):
    """The study counts as large; the list of times that all training images were scored all the same."""
    for name in ("app.evidence", "index.faiss_index"):
        monkeypatch.setattr(f"dtrak.{name}.MANY_NUMBERS", 0)
    method, asked = type(METHODS["dtrak"]), []
    score_all = method.scores
    monkeypatch.setattr(method, "scores", lambda *a: asked.append(a) or score_all(*a))
    return asked
