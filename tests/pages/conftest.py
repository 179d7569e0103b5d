"""What tests of pages share: the app in Streamlit's test client, and an attributed image."""

import pytest
from streamlit.testing.v1 import AppTest

from dtrak.app.service import study_service
from dtrak.config import ROOT
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
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
