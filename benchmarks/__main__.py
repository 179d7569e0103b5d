"""``python -m benchmarks``: measure on the demo study, print a table, write ``docs/benchmarks.md``.

Needs the demo prepared and ``traker`` for the reference recipe (``make bench`` installs it).
"""

import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.reference import reference_seconds_per_sample
from dtrak.compare import ranking
from dtrak.config import ROOT, FeatureConfig, load_study
from dtrak.evaluation.lds import lds_with_interval
from dtrak.evaluation.measure import NOW_RESAMPLES
from dtrak.features import FeatureExtractor
from dtrak.index import AttributionIndex, QueryFeature, build_index
from dtrak.models import DiffusionModel
from dtrak.projection import SparseProjector
from dtrak.readout import Readout
from dtrak.sampling import GenerationSettings, sample
from dtrak.store import FeatureStore
from dtrak.studies import StudyFolder, load_study_model
from dtrak.threads import task_threads

K, DIM = 10, 2048
COMMAND = "python -m benchmarks"


def median_seconds(work: Callable[[], object], repeats: int = 9) -> float:
    """Median wall time of ``work`` after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def floor(model: DiffusionModel, x: torch.Tensor) -> Callable[[], object]:
    """A plain forward and backward of one image at K timesteps: what no feature can go below."""
    timesteps = torch.arange(0, 1000, 1000 // K)
    batch, noise = x.expand(K, *x.shape), torch.randn(K, *x.shape)
    classes = torch.full((K,), next(iter(model.classes.values())))
    parameters = list(model.parameters().values())

    def work() -> object:
        prediction = model.predict(model.add_noise(batch, noise, timesteps), timesteps, classes)
        return torch.autograd.grad((prediction - noise).square().mean(), parameters)

    return work


def feature_rows(folder: StudyFolder) -> list[tuple[str, str, str]]:
    """Features against the floor and against the reference recipe."""
    model, table = load_study_model(folder), folder.table
    x, label = model.encode(table.pixels[:1])[0], table.records[0].label

    def features(*outputs: str, apart: bool = False) -> Callable[[], object]:
        configs = [FeatureConfig(output=o, timesteps=K, projection_dim=DIM, apart=apart) for o in outputs]
        extractor = FeatureExtractor(model, configs)
        return lambda: extractor(x, "a", label)

    with task_threads():
        base = median_seconds(floor(model, x))
        one = median_seconds(features("mean-squared-l2-norm"))
        both = median_seconds(features("mean-squared-l2-norm", "loss"))
        apart = median_seconds(features("mean-squared-l2-norm", "loss", apart=True))
        sparse = SparseProjector(sum(p.numel() for p in model.parameters().values()), DIM, 0)
        gradient = torch.randn(1, sparse.input_dim)
        projection = median_seconds(lambda: sparse(gradient))
        class_index = next(iter(model.classes.values()))
        references = {n: reference_seconds_per_sample(model, x, class_index, K, DIM, n) for n in (1, 8)}
    return [
        ("plain forward and backward, one image at 10 timesteps (floor)", f"{base * 1e3:.0f} ms", ""),
        ("feature, one output function", f"{one * 1e3:.0f} ms", f"{one / base:.2f} × floor (goal 1.5)"),
        ("features, both output functions", f"{both * 1e3:.0f} ms", f"{both / base:.2f} × floor (goal 2.2)"),
        ("the same, each timestep kept apart", f"{apart * 1e3:.0f} ms", f"{apart / base:.2f} × floor"),
        ("of which the sparse projection", f"{projection * 1e3:.1f} ms", ""),
    ] + [
        (
            f"reference recipe, batch of {n}: vmap(grad) and BasicProjector of traker, per sample",
            f"{(gradients + dense) * 1e3:.0f} ms, of which projection {dense * 1e3:.0f} ms",
            f"{(gradients + dense) / one:.1f} × ours (goal 20); projection alone {dense / projection:.0f} × ours",
        )
        for n, (gradients, dense) in references.items()
    ]


def index_rows(folder: StudyFolder) -> list[tuple[str, str, str]]:
    """Building the whole demo index from prepared data, in a fresh workspace."""
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


def query_rows(folder: StudyFolder) -> list[tuple[str, str, str]]:
    """A query beyond its gradient at N = 1,000, and sampling."""
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
    label = next(iter(model.classes))

    def draw() -> None:
        for _ in sample(model, [GenerationSettings(0, 50, label)]):
            pass

    drawing = median_seconds(draw, 3)
    return [
        ("query beyond its gradient, N = 1,000, k = 4,096", f"{seconds * 1e3:.0f} ms", "goal 50 ms"),
        ("one image, 50 DDIM steps", f"{drawing:.2f} s", "goal 3 s"),
    ]


def toggle_rows() -> list[tuple[str, str, str]]:
    """From a toggle to a new ranking at N = 1,000: no gradient, nothing kept from the setting before."""
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
    """From another λ to the LDS and its interval, what the Ablate page does at a toggle."""
    queries = random.standard_normal((200, 4096)).astype(np.float32)
    masks, losses = random.random((64, len(readout.features))) < 0.5, random.standard_normal((64, 200))
    dampings = iter(np.geomspace(1e-3, 1e3, 1000).tolist())

    def work() -> None:
        (scores,) = readout.each(queries, [next(dampings)])
        lds_with_interval(scores, masks, losses, NOW_RESAMPLES)

    return median_seconds(work)


def main() -> None:
    """Measure, print and write."""
    folder = StudyFolder(load_study("demo"))
    rows = feature_rows(folder) + query_rows(folder) + toggle_rows() + index_rows(folder)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    processor = found[1] if found else platform.processor()
    machine = f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        "# Benchmarks",
        "",
        f"`{COMMAND}` on {machine}. Medians of one run; times of features and of the reference are on one thread.",
        "",
        "| what | measured | against |",
        "|---|---|---|",
        *(f"| {a} | {b} | {c} |" for a, b, c in rows),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "docs" / "benchmarks.md").write_text(text)


if __name__ == "__main__":
    main()
