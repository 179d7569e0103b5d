"""``scripts/prove_gpu.py`` without a GPU: its steps run, tiny, and what is done is not done again."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_script_tests_itself_and_goes_on(tmp_path):
    out = tmp_path / "gpu.json"
    table = (ROOT / "docs" / "gpu.md").read_text()

    program = f"""
import json, runpy, sys
sys.argv = ["", "--out", {str(out)!r}, "--seconds", "-1"]
script = runpy.run_path("scripts/prove_gpu.py", run_name="__main__")
kept = {{"machine": script["machine"](), "steps": {{"tests": []}}}}
open({str(out)!r}, "w").write(json.dumps(kept))
print("again")
sys.argv[3:] = []
runpy.run_path("scripts/prove_gpu.py", run_name="__main__")
"""
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    first, said = told.split("again\n")
    assert "Out of time" in first
    assert "tests: done before" in said
    assert "failed" not in said
    steps = json.loads(out.read_text())["steps"]
    assert set(steps) == {"tests", "accuracy", "speed", "speed-lora", "sampling", "training", "estimates"}
    assert float(steps["accuracy"][0][1].split(",")[0]) < 1e-4
    assert (ROOT / "docs" / "gpu.md").read_text() == table
