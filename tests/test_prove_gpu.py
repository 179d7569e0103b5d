"""``scripts/prove_gpu.py`` without a GPU: its steps run, tiny, and what is done is not done again."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_script_tests_itself_and_goes_on(tmp_path):
    command = [sys.executable, "scripts/prove_gpu.py", "--out", str(tmp_path / "gpu.json")]
    table = (ROOT / "docs" / "gpu.md").read_text()

    def run(*more):
        environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert "Out of time" in run("--seconds", "-1")
    kept = {"machine": "", "steps": {}}
    (tmp_path / "gpu.json").write_text(json.dumps(kept))
    program = (
        "import json, runpy; s = runpy.run_path('scripts/prove_gpu.py');"
        f"open({str(tmp_path / 'gpu.json')!r}, 'w').write("
        "json.dumps({'machine': s['machine'](), 'steps': {'tests': []}}))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={"CUDA_VISIBLE_DEVICES": ""}, check=True)
    said = run()
    assert "tests: done before" in said
    assert "failed" not in said
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert set(steps) == {"tests", "accuracy", "speed", "speed-lora", "sampling", "training", "estimates"}
    assert float(steps["accuracy"][0][1].split(",")[0]) < 1e-4
    assert (ROOT / "docs" / "gpu.md").read_text() == table
