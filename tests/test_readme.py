"""The README's example runs as it stands."""

import json
import re
import shlex
from pathlib import Path

from index_builder.cli import app
from tests.conftest import drawn_image, write_images, write_model
from tests.helpers import runner

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_study_builds_and_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images")
    write_model(tmp_path / "model")
    drawn_image(99).save(tmp_path / "picture.png")
    yaml_block = re.search(r"```yaml\n(.*?)```", README, re.S)
    few = "unrelated: {drawings: 20, count: 20}\n"  # for time
    (tmp_path / "my.yaml").write_text(yaml_block[1] + few)
    commands = re.findall(r"^python -m index_builder (\w+ my\.yaml.*)$", README, re.M)
    assert [c.split()[0] for c in commands] == ["build", "attribute"]
    for command in commands:
        result = runner.invoke(app, shlex.split(command))
        assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["study"] == "my"


def test_every_configuration_key_is_documented():
    from dtrak.config import DataConfig, FeatureConfig, ModelConfig, Study, TrainingConfig, TruthConfig

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for model in (Study, DataConfig, ModelConfig, TrainingConfig, TruthConfig, FeatureConfig):
        for key in set(model.model_fields) - {"source", "data", "model", "training", "features", "truth"}:
            assert re.search(rf"\b{key}\b", text), key


def test_every_method_and_choice_is_documented():
    from dtrak.methods.choices import choices_table
    from dtrak.methods.registry import METHODS

    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in re.findall(r"^\| `([a-z-]+)` \|", text, re.M) if name in METHODS] == list(METHODS)
    for label, flag, meaning, values in choices_table():
        assert f"| {label} | `{flag}` | {meaning} | {values} |" in text


def test_the_readmes_python_runs(source, tmp_path, monkeypatch, tiny):
    """The tour in Python, on the tiny study in place of the demo."""
    block = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert "open_study" in block
    block = block.replace('"demo"', repr(str(source / "tiny.yaml")))
    exec(compile(block, "README.md", "exec"), {})
