"""``python -m benchmarks.weights [STUDY]``: is a score better if its timesteps have learned weights?

A D-TRAK score is a sum over the query's timesteps. Non-negative weights of these parts are learned from retrained
models by non-negative least squares, and judged on other retrained models only.
"""

import argparse

import numpy as np
from jaxtyping import Bool, Float64
from scipy.optimize import nnls

from benchmarks.report import publish
from dtrak.config import load_study
from dtrak.evaluation.lds import Bootstrap, predicted
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import load_subsets
from dtrak.study.folder import StudyFolder
from dtrak.utils.noise import keyed_generator

FOLDS = 5
Predictions = Float64[np.ndarray, "parts m q"]


def parts_of(attributor: Attributor, name: str, masks: Bool[np.ndarray, "m n"]) -> tuple[Predictions, list[int]]:
    """The predicted loss of each model on each query by each timestep of the query, and the timesteps."""
    setting = Setting(name)
    (side,) = attributor.sides(setting)
    (asked,) = attributor.sides(setting, "truth")
    readout, store = attributor.readout(side), attributor.store(asked.sources[0].config)
    damping = readout.damping(METHODS[name].damping)  # type: ignore[attr-defined]
    found = []
    for one in np.eye(len(asked.pairs)):
        scores = readout.scores(store.weighted(one), damping)
        found.append(predicted(scores, masks))
    return np.stack(found), [timestep for timestep, _ in asked.pairs]


def learned(parts: Predictions, losses: Float64[np.ndarray, "m q"]) -> Float64[np.ndarray, " parts"]:
    """Weights with sum 1, of predictions in units of their plain sum's deviation on each query."""
    scale = parts.sum(0).std(0)
    x = (parts - parts.mean(1, keepdims=True)) / scale
    y = (losses - losses.mean(0)) / losses.std(0)
    weights, _ = nnls(x.reshape(len(parts), -1).T, y.ravel())
    return weights / weights.sum() if weights.any() else np.full(len(parts), 1 / len(parts))


def crossfitted(parts: Predictions, losses: Float64[np.ndarray, "m q"]) -> Float64[np.ndarray, "m q"]:
    """Predictions of every model by weights that were learned from the models of other folds."""
    fold = keyed_generator("folds", 0, "").permutation(parts.shape[1]) % FOLDS
    parts = parts - parts.mean(1, keepdims=True)  # folds have other weights, so would have other means
    parts /= parts.sum(0).std(0)
    found = np.empty_like(losses)
    for number in range(FOLDS):
        weights = learned(parts[:, fold != number], losses[fold != number])
        found[fold == number] = np.tensordot(weights, parts[:, fold == number], 1)
    return found


def main() -> None:
    """Learn weights by cross-fitting, print the table and write it to docs/evaluation.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="demo")
    folder = StudyFolder(load_study(parser.parse_args().study))
    attributor, truth, asked = Attributor(folder), load_subsets(folder, "lds"), load_query_set(folder)
    rows = []
    for name in ("dtrak", "trak"):
        parts, timesteps = parts_of(attributor, name, truth.masks)
        for kind, columns in asked.groups.items():
            mine, losses = parts[:, :, columns], np.asarray(truth.losses[:, columns], np.float64)
            labels = attributor.table.labels_of([label or None for label in asked.labels[columns]])
            bootstrap = Bootstrap(losses, labels)
            plain, fitted = (
                bootstrap.as_estimate(bootstrap.means(bootstrap.table(one)))
                for one in (mine.sum(0), crossfitted(mine, losses))
            )
            (low, high), weights = (fitted - plain).interval, learned(mine, losses)
            shown = ", ".join(f"{t}: {w:.2f}" for t, w in zip(timesteps, weights, strict=True) if w >= 0.005)
            gain = f"{100 * (fitted.value - plain.value):+.1f} ({100 * low:.1f} to {100 * high:.1f})"
            rows.append(
                (METHODS[name].title, kind, f"{100 * plain.value:.1f}", f"{100 * fitted.value:.1f}", gain, shown)
            )
    header = ("method", "queries", "equal weights", "learned", "difference", "weights by timestep")
    publish("python -m benchmarks.weights", rows, header, "evaluation.md", f" {len(truth.masks)} subset models.")


if __name__ == "__main__":
    main()
