"""``python -m benchmarks.sketches [STUDY]``: how much do scores differ from those of unprojected gradients?

The mean gradient of every training image and of some queries is computed once (in a temporary file), then projected
to several dimensions with two seeds. Scores use the method's default damping.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.stats import spearmanr

from benchmarks.report import Row, publish
from dtrak.config import FeatureConfig, load_study
from dtrak.evaluation.lds import lds
from dtrak.execution.threads import task_threads
from dtrak.gradients.extractor import mean_gradient
from dtrak.gradients.projection import SparseProjector
from dtrak.methods.query import load_query_set
from dtrak.methods.readout import Readout
from dtrak.methods.registry import METHODS
from dtrak.methods.subsets import load_subsets
from dtrak.models.base import DiffusionModel
from dtrak.models.loading import load_study_model
from dtrak.study.folder import StudyFolder

DIMENSIONS = (1024, 4096, 16_384, 65_536)
SEEDS = (0, 1)


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


def main() -> None:
    """Run the study of sketch sizes, print the table and write it to the docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="demo")
    parser.add_argument("--queries", type=int, default=24, help="held-out and generated queries, half of each")
    parsed = parser.parse_args()
    folder = StudyFolder(load_study(parsed.study))
    model, truth, asked = load_study_model(folder), load_subsets(folder, "lds"), load_query_set(folder)
    half = parsed.queries // 2
    queries = [*range(half), *range(asked.heldout, asked.heldout + half)]
    losses = truth.losses[:, queries]
    found: list[Row] = []

    def judged(scores: Float64[np.ndarray, "q n"]) -> list[float]:
        every = lds(scores, truth.masks, losses)
        return [float(every[:half].mean()), float(every[half:].mean())]

    for name, output in (("trak", "loss"), ("dtrak", "mean-squared-l2-norm")):
        method = METHODS[name]
        config = FeatureConfig(output=output, timesteps=10, projection_dim=DIMENSIONS[0])
        with tempfile.TemporaryDirectory() as place, task_threads():
            rows = gradients(model, folder, config, queries, Path(place) / "gradients.npy")
            count, size = folder.table.train_size, rows.shape[1]
            exact = Readout(rows[:count]).scores(rows[count:], method.damping)
            found.append(_row(f"{method.title}, unprojected ({size:,} weights)", [], [judged(exact)]))
            for dim in DIMENSIONS:
                like, lds_of = [], []
                for seed in SEEDS:
                    project = SparseProjector(size, dim, seed)
                    sketched = np.concatenate([project(torch.from_numpy(row[None].copy())).numpy() for row in rows])
                    ours = Readout(sketched[:count]).scores(sketched[count:], method.damping)
                    like.append(_agreement(ours, exact))
                    lds_of.append(judged(ours))
                found.append(_row(f"{method.title}, k = {dim:,}", like, lds_of))
    publish("python -m benchmarks.sketches", found, about=f" {parsed.queries} queries, half of each kind.")


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
