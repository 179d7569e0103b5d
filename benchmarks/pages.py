"""``python -m benchmarks.pages``: the Attribution and Ablate pages for a study of 50,000 images (AppTest).

The study has tiny images, a tiny network and synthetic features (:mod:`benchmarks.size`). A page run is one execution
of the app's script.
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from streamlit.testing.v1 import AppTest

from benchmarks.report import Row, publish
from benchmarks.size import DTRAK, TRAK, draw
from dtrak.app.jobs import queue, queue_beside
from dtrak.build.features import build_indexes, shard_size
from dtrak.config import ROOT, load_study
from dtrak.data import prepare
from dtrak.index.store import FeatureStore
from dtrak.methods.training_side import TrainingSide
from dtrak.study.folder import StudyFolder
from dtrak.utils.text import in_words
from tests.conftest import write_model

ROWS, DIM, SIDE, TOGGLES = 50_000, 4096, 8, 8
LIKE = {"mean-squared-l2-norm": DTRAK, "loss": TRAK}


def write_study(folder: Path) -> Path:
    """Write images, network and YAML file."""
    images = folder / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for number in range(ROWS):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number:05d}.png")
    write_model(folder / "model")
    content = {
        "title": "Fifty thousand",
        "data": {"kind": "imagefolder", "path": "images", "holdout": 0},
        "model": {"path": "model", "classes": {}, "null_class": 0},
        "resolution": 2 * SIDE,
        "features": [{"output": output, "timesteps": 2, "projection_dim": DIM} for output in LIKE],
    }
    (folder / "large.yaml").write_text(yaml.safe_dump(content))
    return folder / "large.yaml"


def build(folder: StudyFolder) -> None:
    """Write synthetic features under the study's identities, and build the index."""
    side, stores = TrainingSide(folder), []
    for config in folder.study.features:
        store = FeatureStore.create(folder.features, side.identity(config), ROWS, shard_size(ROWS))
        for shard in store.missing():
            rows = len(store.shard_rows(shard))
            store.write(shard, draw(LIKE[config.output], rows, DIM, shard), np.ones((rows, 2, 2)))
        stores.append(store)
    build_indexes(folder, stores)


def memory() -> float:
    """Bytes of anonymous memory of this process, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024


def timed(app: AppTest) -> float:
    """Seconds of one page run; background jobs that it starts are awaited but not counted."""
    start = time.perf_counter()
    app.run()
    seconds = time.perf_counter() - start
    assert not app.exception
    while queue().active() or queue_beside().active():
        time.sleep(0.05)
    return seconds


def page_rows(study: str, run: str) -> list[Row]:
    """Changed settings on both pages."""
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=300)
    rows: list[Row] = []
    for page, slider in (("attribution", "damping_dtrak"), ("ablate", "ablate_power_dtrak")):
        app.query_params.update({"study": study, "run": run})
        app.run()
        app.query_params.update({"study": study, "run": run})
        timed(app.switch_page(f"pages/{page}.py"))  # computes the query's gradient
        timed(app)
        seconds = []
        for i in range(TOGGLES):
            app.slider(key=slider).set_value(0.25 * i)
            seconds.append(timed(app))
        what = (
            f"{page.capitalize()}, N = {ROWS:,}, k = {DIM:,}: another λ to the end of the page's script, all else idle"
        )
        worst = f"goal 500 ms; the slowest of {TOGGLES}: {1e3 * max(seconds):.0f} ms"
        rows.append((what, f"{1e3 * statistics.median(seconds):.0f} ms", worst))
    return rows


def main() -> None:
    """Run the benchmark, print the table and write it to the docs."""
    scratch = Path(tempfile.mkdtemp(dir=Path.cwd(), prefix=".bench-"))
    try:
        os.environ |= {"DTRAK_WORKSPACE": str(scratch / "workspace"), "DTRAK_CONFIGS": str(scratch)}
        folder = StudyFolder(load_study(str(write_study(scratch))))
        start = time.perf_counter()
        prepare(folder.study, folder.data)
        prepared = time.perf_counter() - start
        build(folder)
        from dtrak.app.service import study_service

        before = memory()
        service = study_service("large")
        run = service.runs.save_upload(np.asarray(service.attributor.table.pixels[0]), None)
        rows = page_rows("large", run.id)
        size = sum(path.stat().st_size for path in folder.index.rglob("*") if path.is_file())
        rows += [
            (
                f"memory that the pages have taken beside an index of {size / 1e9:.1f} GB",
                f"{(memory() - before) / 1e9:.2f} GB",
                "",
            ),
            (f"reading and checking {ROWS:,} images", in_words(prepared), ""),
        ]
        publish("python -m benchmarks.pages", rows)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
