"""``python -m benchmarks.engines``: features with local processes and with Ray, with one and two workers."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.report import Row, publish
from dtrak.build.features import build_features
from dtrak.config import FeatureConfig, load_study
from dtrak.data import prepare
from dtrak.execution.engines import Engine, Local
from dtrak.execution.ray_engine import Ray
from dtrak.study.folder import StudyFolder

K = 50  # enough for minutes of work, as in larger studies
SETS = tuple(FeatureConfig(output=output, timesteps=K) for output in ("mean-squared-l2-norm", "loss"))


@contextmanager
def fresh_demo() -> Iterator[StudyFolder]:
    """The demo with prepared data and nothing built."""
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DTRAK_WORKSPACE", scratch)
        folder = StudyFolder(load_study("demo"))
        prepare(folder.study, folder.data)
        yield folder


def seconds(engine: Engine) -> tuple[float, float]:
    """Seconds of the whole build, and extrapolated from the time between its first and last shard (without startup)."""
    with fresh_demo() as folder:
        ticks = []
        start = time.perf_counter()
        build_features(folder, engine, report=lambda part, done, total: ticks.append(time.perf_counter()), sets=SETS)
        shards = len(ticks) - 1
        return time.perf_counter() - start, (ticks[-1] - ticks[1]) * shards / (shards - 1)


def main() -> None:
    """Run the benchmark, print the table and write it to the docs."""
    assert Path("configs").is_dir(), "run this in the checkout"
    engines: dict[str, Engine] = {
        "local, 1 worker": Local(1),
        "local, 2 workers": Local(2),
        "Ray, 1 worker": Ray(workers=1),
        "Ray, 2 workers": Ray(workers=2),
    }
    found = {name: seconds(engine) for name, engine in engines.items()}
    rows: list[Row] = []
    for name, (whole, working) in found.items():
        against = []
        if "2" in name:
            against.append(f"{found[name.replace('2 workers', '1 worker')][0] / whole:.2f} × as fast as 1 worker")
        if "Ray" in name:
            local = found[name.replace("Ray", "local")]
            against.append(
                f"{100 * (whole / local[0] - 1):+.0f} % against local, {100 * (working / local[1] - 1):+.0f} % once "
                "workers are there (goal 10 %)"
            )
        rows.append((f"features of the demo at {K} timesteps, {name}", f"{whole:.0f} s", "; ".join(against)))
    publish("python -m benchmarks.engines", rows)


if __name__ == "__main__":
    main()
