"""``python -m benchmarks``: the demo's index, a query and a changed setting; writes tables to ``docs/benchmarks.md``.

:mod:`benchmarks.features` and :mod:`benchmarks.projections` measure gradients and projections (``make bench`` installs
the packages they are compared with), :mod:`benchmarks.size` indexes of growing size, :mod:`benchmarks.engines` Ray,
:mod:`benchmarks.app` the app's start, and :mod:`benchmarks.pages` its pages for a large study.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Row, median_seconds, publish
from dtrak.analysis.comparison import ranking
from dtrak.config import ROOT, load_study
from dtrak.evaluation.lds import lds_with_interval
from dtrak.evaluation.measure import NOW_RESAMPLES
from dtrak.index.faiss_index import AttributionIndex, QueryFeature, build_index
from dtrak.index.store import FeatureStore
from dtrak.methods.readout import Readout
from dtrak.models.generation import GenerationSettings
from dtrak.models.loading import load_study_model
from dtrak.models.sampling import sample
from dtrak.study.folder import StudyFolder

COMMAND = "python -m benchmarks"


def index_rows(folder: StudyFolder) -> list[Row]:
    """Building the demo's index from prepared data, in a new workspace."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(folder.data, Path(scratch) / "demo" / "data")
        command = [sys.executable, "-m", "index_builder", "build", "demo", "--index-only"]
        start = time.perf_counter()
        subprocess.run(
            command, check=True, cwd=ROOT, env={**os.environ, "DTRAK_WORKSPACE": scratch}, stderr=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
        size = sum(f.stat().st_size for f in Path(scratch).rglob("*") if f.is_file() and "data" not in f.parts)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    config = folder.study.features[0]
    what = (
        f"demo index: {folder.table.train_size} images, 2 outputs, K = {config.timesteps}, k = {config.projection_dim}"
    )
    return [
        (what, f"{seconds:.0f} s", f"goal 120 s; {size / 2**20:.0f} MB on disk"),
        ("largest process of that build", f"{peak:.2f} GB", "goal 4 GB in all"),
    ]


def query_rows(folder: StudyFolder) -> list[Row]:
    """A query after its gradient at N = 1,000, and sampling an image."""
    identity = {"output": "loss", "projection": {"dim": 4096}, "dtype": "float32"}
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        store = FeatureStore.create(Path(scratch) / "features", identity, 1000, shard_size=250)
        for shard in store.shards:
            store.write(shard, random.standard_normal((250, 4096)).astype(np.float32))
        index = AttributionIndex(build_index(store, Path(scratch) / "index"), store)
        query = QueryFeature(random.standard_normal(4096).astype(np.float32), identity)

        def ask() -> None:
            index.scores(query, 0.1)
            q = index.kernel.precondition(index.features, query.vector, 0.1)
            index.search(q, 10)
            index.search(-q, 10)

        seconds = median_seconds(ask)
    model = load_study_model(folder)
    label = model.names[0]

    def draw() -> None:
        for _ in sample(model, [GenerationSettings(0, 50, label)]):
            pass

    drawing = median_seconds(draw, 3)
    return [
        ("query beyond its gradient, N = 1,000, k = 4,096", f"{seconds * 1e3:.0f} ms", "goal 50 ms"),
        ("one image, 50 DDIM steps", f"{drawing:.2f} s", "goal 3 s"),
    ]


def toggle_rows() -> list[Row]:
    """From a changed setting to a new ranking at N = 1,000, without cached results of the previous setting."""
    parts = 10
    identity = {"output": "loss", "projection": {"dim": 4096}, "dtype": "float32", "parts": parts}
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        store = FeatureStore.create(Path(scratch), identity, 1000, shard_size=16)
        for shard in store.shards:
            rows = len(store.shard_rows(shard))
            store.write(shard, random.standard_normal((rows, parts, 4096)).astype(np.float32))
        query = random.standard_normal(4096).astype(np.float32)
        every_other = np.array([0.2, 0.0] * 5)

        def timesteps() -> None:
            ranking(Readout(store.weighted(every_other)).scores(query, 0.1))

        readout = Readout(store.weighted(every_other))
        readout.scores(query, 0.1)
        dampings = iter(np.geomspace(1e-3, 1e3, 1000).tolist())

        def damping() -> None:
            ranking(readout.scores(query, next(dampings)))

        def dimension() -> None:
            ranking(Readout(store.weighted(every_other, 1024)).scores(query[:1024], 0.1))

        measured = [median_seconds(work, 5) for work in (timesteps, damping, dimension)]
        judged = lds_seconds(readout, random)
    what = ("another selection of timesteps", "another λ", "another k (1,024)")
    return [
        (f"toggle to ranking, N = 1,000, k = 4,096, 10 parts: {name}", f"{seconds * 1e3:.0f} ms", "goal 200 ms")
        for name, seconds in zip(what, measured, strict=True)
    ] + [
        ("LDS of another λ with its interval: M = 64, N = 1,000, 200 queries", f"{judged * 1e3:.0f} ms", "goal 100 ms")
    ]


def lds_seconds(readout: Readout, random: np.random.Generator) -> float:
    """From a changed λ to the LDS and its interval, as on the Ablate page."""
    queries = random.standard_normal((200, 4096)).astype(np.float32)
    masks, losses = random.random((64, len(readout.features))) < 0.5, random.standard_normal((64, 200))
    dampings = iter(np.geomspace(1e-3, 1e3, 1000).tolist())

    def work() -> None:
        (scores,) = readout.each(queries, [next(dampings)])
        lds_with_interval(scores, masks, losses, NOW_RESAMPLES)

    return median_seconds(work)


def main() -> None:
    """Run the benchmarks, print the tables and write them to the docs."""
    folder = StudyFolder(load_study("demo"))
    publish(COMMAND, query_rows(folder) + toggle_rows() + index_rows(folder))


if __name__ == "__main__":
    main()
