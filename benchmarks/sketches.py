"""``python -m benchmarks.sketches [STUDY]``: how much do scores differ from those of unprojected gradients?

The mean gradient of every training image and of some queries is computed once (in a temporary file), then projected
to several dimensions with two seeds. Scores use the method's default damping.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from scipy.linalg import solve
from scipy.stats import spearmanr

from benchmarks.report import Row, publish
from dtrak.config import FeatureConfig, load_study
from dtrak.evaluation.lds import lds
from dtrak.execution.threads import task_threads
from dtrak.gradients.extractor import mean_gradient
from dtrak.gradients.projection import SparseProjector
from dtrak.methods.query import load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.subsets import load_subsets
from dtrak.models.base import DiffusionModel
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder

DIMENSIONS = (1024, 4096, 16_384, 65_536)
SEEDS = (0, 1)
DAMPING = 0.1  # where a method chooses its own
BLOCK = 2**16  # columns of a product


def gradients(
    model: DiffusionModel, folder: StudyFolder, config: FeatureConfig, queries: list[int], file: Path
) -> Float32[np.ndarray, "n p"]:
    """The mean gradients of the training images, then of queries, in a memory-mapped file."""
    table, asked = folder.table, load_query_set(folder).queries
    images = [(table.pixels[row], table.records[row].id, table.names[row]) for row in range(table.train_size)]
    images += [(asked[i].pixels, asked[i].id, asked[i].label) for i in queries]
    size = sum(p.numel() for p in model.parameters().values())
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (len(images), size))
    for row, image in zip(rows, images, strict=True):
        row[:] = torch.cat([g.flatten() for g in mean_gradient(model, *image, config).values()]).numpy()
    return rows


def scores(rows: Float[np.ndarray, "m p"], count: int, damping: float) -> Float64[np.ndarray, "q n"]:
    """Φ (ΦᵀΦ + λI)⁻¹ φ for the first ``count`` rows Φ and all others φ, by products of blocks of columns."""
    products = np.zeros((len(rows), count))
    for start in range(0, rows.shape[1], BLOCK):
        part = np.asarray(rows[:, start : start + BLOCK], np.float32)
        products += part @ part[:count].T
    gram, across = products[:count], products[count:]
    absolute = damping * np.trace(gram) / min(count, rows.shape[1])
    return solve(gram + absolute * np.eye(count), across.T, assume_a="pos").T


def main() -> None:
    """Run the study of sketch sizes, print the table and write it to the docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="demo")
    parser.add_argument("--queries", type=int, default=40, help="held-out and generated queries, half of each")
    parsed = parser.parse_args()
    folder = StudyFolder(load_study(parsed.study))
    model, truth, asked = load_study_model(folder), load_subsets(folder, "lds"), load_query_set(folder)
    half = parsed.queries // 2
    queries = [*range(half), *range(asked.heldout, asked.heldout + half)]
    found: list[Row] = []
    for name, output in (("trak", "loss"), ("dtrak", "mean-squared-l2-norm")):
        config = FeatureConfig(output=output, timesteps=10, projection_dim=DIMENSIONS[0])
        damping = METHODS[name].damping
        damping = damping if isinstance(damping, float) else DAMPING
        with tempfile.TemporaryDirectory() as place, task_threads():
            rows = gradients(model, folder, config, queries, Path(place) / "gradients.npy")
            count, size = folder.table.train_size, rows.shape[1]
            exact = scores(rows, count, damping)
            measured = [
                lds(exact[part], truth.masks, truth.losses[:, queries][:, part]).mean() for part in _halves(half)
            ]
            found.append(_row(f"{METHODS[name].title}, unprojected ({size:,} weights)", [], [measured]))
            for dim in DIMENSIONS:
                like, judged = [], []
                for seed in SEEDS:
                    project = SparseProjector(size, dim, seed)
                    sketched = np.concatenate([project(torch.from_numpy(row[None].copy())).numpy() for row in rows])
                    ours = scores(sketched, count, damping)
                    like.append(_agreement(ours, exact))
                    judged.append([
                        lds(ours[part], truth.masks, truth.losses[:, queries][:, part]).mean() for part in _halves(half)
                    ])  # fmt: skip
                found.append(_row(f"{METHODS[name].title}, k = {dim:,}", like, judged))
        publish("python -m benchmarks.sketches", found)  # what is finished


def _halves(half: int) -> list[slice]:
    return [slice(0, half), slice(half, None)]


def _agreement(ours: Float64[np.ndarray, "q n"], exact: Float64[np.ndarray, "q n"]) -> tuple[float, float]:
    """Spearman's correlation with exact scores, and how often the first image is the same."""
    ranks = [spearmanr(a, b).statistic for a, b in zip(ours, exact, strict=True)]
    return float(np.mean(ranks)), float((ours.argmax(1) == exact.argmax(1)).mean())


def _row(what: str, like: list[tuple[float, float]], judged: list[list[float]]) -> Row:
    ranks, same = np.mean(like, axis=0) if like else (1.0, 1.0)
    heldout, generated = 100 * np.mean(judged, axis=0)
    return (
        what,
        f"{ranks:.3f}",
        f"first image the same in {same:.0%}; LDS {heldout:.1f} held-out, {generated:.1f} generated",
    )


if __name__ == "__main__":
    main()
