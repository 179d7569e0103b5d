"""Code copied from a page gives the page's answer."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest

import dtrak
from dtrak.app.code import as_command, as_python
from dtrak.app.runs import RunStore
from dtrak.methods.settings import Setting
from dtrak.models.generation import GenerationSettings
from dtrak.models.sampling import generate
from tests.helpers import call

SETTING = Setting("trak", timesteps=1, damping=0.5)


@pytest.fixture
def generated(attributor, tmp_path):
    settings = GenerationSettings(3, 4, "round")
    pixels = generate(attributor.model, [settings])[0]
    return RunStore(tmp_path).save_generated("model", settings, pixels)


def test_python_and_command_give_the_pages_ranking(attributor, source, generated):
    study = str(source / "tiny.yaml")
    query = dtrak.open_study(study)._query(generated.pixels, "round")
    features = attributor.features(query, [SETTING], by_block=False)
    expected = [s.record.id for s in attributor.attribute(query, features, SETTING, 3).proponents]
    found = {}
    exec(as_python(study, generated, SETTING, 3), found)
    assert [s.record.id for s in found["ranking"].proponents] == expected
    command = shlex.split(as_command(study, generated, SETTING, 3))
    assert command[0] == "dtrak"
    printed = json.loads(call(*command[1:]).stdout)
    assert [entry["id"] for entry in printed["proponents"]] == expected
    assert printed["verdict"] is None or "p_value" in printed["verdict"]


def test_an_image_with_another_strength_of_the_lora_is_read_from_a_file(generated):
    run = replace(generated, settings=replace(generated.settings, lora_scale=0.5))
    assert 'study.attribute("image.png"' in as_python("demo", run, SETTING, 3)
    assert "--image image.png --label round" in as_command("demo", run, SETTING, 3)


def test_an_upload_is_read_from_a_file(tmp_path):
    run = RunStore(tmp_path).save_upload(np.zeros((4, 4, 3), np.uint8), "it's")
    assert """study.attribute("image.png", label="it's", method='dtrak', top=10)""" in as_python(
        "demo", run, Setting(), 10
    )
    command = as_command("demo", run, Setting(), 10)
    assert shlex.split(command)[3:7] == ["--image", "image.png", "--label", "it's"]
