"""The notebooks in examples/ run from end to end."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("name", ["quickstart", "own_model"])
def test_notebook_runs(name, source, tmp_path, monkeypatch):
    monkeypatch.setenv("DTRAK_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("DTRAK_STUDY", str(source / "tiny.yaml"))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("Proponents" in output.get("data", {}).get("text/html", "") for output in shown)


def test_notebooks_are_committed_without_outputs():
    for path in EXAMPLES.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") for cell in cells), path
