"""``python -m benchmarks.kills [--kills 200]``: what remains after kill -9 at random times?

Each command runs on a tiny study: once undisturbed, then again and again with all its processes killed at a random
time and the same command repeated until it is through. Its files must have the same bytes as the undisturbed run's.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import Row, publish
from tests.conftest import write_images, write_model, write_study

TRAINED = {"steps": 40, "batch_size": 4, "warmup": 1, "checkpoints": [0.5, 1.0]}
COMMANDS = {
    "build, two workers": ["build", "tiny.yaml", "--workers", "2"],
    "train": ["train", "new.yaml"],
    "retrain, four subsets": ["retrain", "tiny.yaml", "--subsets", "4"],
    "counterfactual, one query": ["counterfactual", "tiny.yaml", "--queries", "1", "--remove", "4"],
}
CHANGING = {".lock", "costs.json", "training.json", "run.json", "example.json"}  # they note times and places
LIMIT = 300.0  # seconds of one command


@dataclass
class Count:
    """What happened to one command."""

    kills: int = 0
    runs: int = 0
    failures: int = 0
    different: int = 0


def write_studies(folder: Path) -> None:
    """The tests' tiny study, and one whose model is yet to be trained."""
    write_images(folder / "images")
    for number, name in enumerate(("model", "checkpoint-0.50", "member-1")):
        write_model(folder / name, seed=number)
    text = write_study(folder, training=TRAINED).read_text()
    (folder / "new.yaml").write_text(text.replace("path: model", "path: new/checkpoint-1.00"))


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every file but those that note times and places."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CHANGING
    }


def run(command: list[str], folder: Path, workspace: Path, seconds: float = LIMIT) -> int | None:
    """The exit status of a command of the index builder; None if it was killed after ``seconds``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "index_builder", command[0], str(folder / command[1]), *command[2:]],
        env=os.environ | {"DTRAK_WORKSPACE": str(workspace)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def campaign(command: list[str], folder: Path, start: Path, kills: int, random: np.random.Generator) -> Count:
    """Kill a command ``kills`` times; each time it gets through, compare its files and begin anew.

    Args:
        start: the workspace that the command begins with.
    """
    count, right = Count(), folder / "undisturbed"
    shutil.copytree(start, right)
    before = time.perf_counter()
    assert run(command, folder, right) == 0, f"'{' '.join(command)}' fails undisturbed"
    usual = time.perf_counter() - before
    wanted = hashes(right)
    while count.kills < kills:
        tried = folder / "killed"
        shutil.copytree(start, tried)
        status = None
        while status is None:
            last = count.kills >= kills
            status = run(command, folder, tried, LIMIT if last else random.uniform(0.3, 1.1) * usual)
            count.kills += status is None
        count.runs += 1
        count.failures += status != 0
        count.different += hashes(tried) != wanted
        shutil.rmtree(tried)
    shutil.rmtree(right)
    return count


def main() -> None:
    """Run the campaigns, print the table and write it to the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    kills = -(-parser.parse_args().kills // len(COMMANDS))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, random = Path(scratch), np.random.default_rng(0)
        write_studies(folder)
        start = folder / "start"
        start.mkdir()
        for title, command in COMMANDS.items():
            found = campaign(command, folder, start, kills, random)
            text = f"{found.different} of {found.runs} finished runs differ, {found.failures} failed"
            rows.append((f"{title}: {found.kills} kills", text, "bytes of an undisturbed run (goal: 0 and 0)"))
            assert run(command, folder, start) == 0, f"'{title}' fails"  # the next command needs its files
    publish("python -m benchmarks.kills", rows)


if __name__ == "__main__":
    main()
