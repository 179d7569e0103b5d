"""``python -m benchmarks.explain STUDY``: how much of a study's truth do simple properties of the images explain?

A property of the training images (how bright, how detailed …) is scored as a method is: by its sum over a subset, and
by how near each training image comes to the query in it. What the methods find is then judged again with these sums
regressed out.
"""

import argparse

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from scipy.stats import rankdata

from benchmarks.report import publish
from dtrak.config import RANDOMISED, load_study
from dtrak.evaluation.lds import correlations, predicted, residuals
from dtrak.evaluation.measure import Trial, score_matrices
from dtrak.methods.attributor import Attributor
from dtrak.methods.query import QuerySet, load_query_set
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth, load_subsets
from dtrak.study.folder import StudyFolder
from dtrak.utils.noise import keyed_generator

METHODS = [
    *(Setting(name) for name in ("dtrak", "trak", "pixel-rbf", "embedding-rbf")),
    *(Setting(name, checkpoint=RANDOMISED) for name in ("dtrak", "trak")),
]
Properties = dict[str, Float64[np.ndarray, " n"]]


def properties(pixels: UInt8[np.ndarray, "n r r 3"]) -> Properties:
    """Simple properties of images."""
    images = pixels.astype(np.float64) / 255
    grey = images.mean(3)
    slopes = [np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2)]
    return {
        "brightness": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "colourfulness": (images.max(3) - images.min(3)).mean((1, 2)),
        "detail": slopes[0] + slopes[1],
        "detail per contrast": (slopes[0] + slopes[1]) / np.maximum(grey.std((1, 2)), 1 / 255),
    }


def gradient_norms(attributor: Attributor) -> Properties:
    """The norms of each training image's features."""
    found = {}
    for setting in (Setting("dtrak"), Setting("trak"), Setting("trak", checkpoint=RANDOMISED)):
        (side,) = attributor.sides(setting)
        found[f"gradient norm, {setting.title}"] = np.asarray(attributor.readout(side).norms, np.float64)
    return found


def both_signs(scores: Float64[np.ndarray, "q n"]) -> list[Float[np.ndarray, "q n"]]:
    """Scores whose sign is chosen as λ is."""
    return [scores.astype(np.float32), -scores.astype(np.float32)]


def residual_lds(
    every: list[Float[np.ndarray, "q n"]], truth: SubsetTruth, part: slice, sums: Float64[np.ndarray, "m f"]
) -> float:
    """The cross-fitted LDS with the sums regressed out of predictions and losses."""
    losses = residuals(truth.losses[:, part].astype(np.float64), sums)
    left = [residuals(predicted(scores[part], truth.masks), sums) for scores in every]

    def lds(one: Float[np.ndarray, "m q"], models: Bool[np.ndarray, " m"]) -> float:
        return float(correlations(*(rankdata(x[models], axis=0) for x in (one, losses))).mean())

    even = np.arange(len(losses)) % 2 == 0
    found = []
    for half in (even, ~even):
        best = int(np.argmax([lds(one, half) for one in left]))
        found.append(lds(left[best], ~half))
    return float(np.mean(found))


def common_part(losses: Float[np.ndarray, "m q"]) -> tuple[float, Float64[np.ndarray, " m"]]:
    """The share of the variance of standardised losses that one number per model explains, and that number."""
    left, sizes, _ = np.linalg.svd((losses - losses.mean(0)) / losses.std(0), full_matrices=False)
    return float(sizes[0] ** 2 / (sizes**2).sum()), left[:, 0]


def most_explained(target: Float64[np.ndarray, "m t"], sums: Float64[np.ndarray, "m f"]) -> Float64[np.ndarray, "f t"]:
    """The squared correlation of each sum with each target."""
    x, y = ((v - v.mean(0)) / v.std(0) for v in (sums, target))
    return (x.T @ y / len(x)) ** 2


def common_text(
    kind: str, losses: Float64[np.ndarray, "m q"], names: list[str], sums: Float64[np.ndarray, "m f"]
) -> str:
    """How much of the losses one number per model explains, and what explains that number; each beside chance."""
    random = keyed_generator("explain", 0, kind)
    share, number = common_part(losses)
    by_chance = np.mean([common_part(random.permuted(losses, axis=0))[0] for _ in range(20)])
    found = most_explained(number[:, None], sums)[:, 0]
    shuffled = np.stack([random.permutation(number) for _ in range(1000)], axis=1)
    limit = np.quantile(most_explained(shuffled, sums).max(0), 0.95)
    return (
        f" Of the {kind} queries' losses one number per model explains {100 * share:.0f} % "
        f"({100 * by_chance:.0f} % if each query's losses are shuffled). The sum that explains most of this number is "
        f"that of {names[int(found.argmax())]}: R² = {found.max():.2f}; for shuffled numbers the largest R² is below "
        f"{limit:.2f} in 95 % of cases."
    )


def rows_of(attributor: Attributor, truth: SubsetTruth, asked: QuerySet) -> tuple[list[list[str]], str]:
    """The table's rows, and what is said of the losses' common part."""
    table = attributor.table
    mine = properties(np.asarray(table.pixels[: table.train_size])) | gradient_norms(attributor)
    labels = np.array(table.train_groups[0])
    mine |= {f"label '{name}'": (labels == name).astype(np.float64) for name in np.unique(labels)[:-1]}
    theirs = properties(np.asarray(asked.pixels))
    groups = asked.groups
    trials = {kind: Trial(table, truth, asked, part) for kind, part in groups.items()}
    constant = [name for name, x in mine.items() if (truth.masks @ x).std() < 1e-9]  # subsets are stratified
    standardised = {name: (x - x.mean()) / x.std() for name, x in mine.items() if name not in constant}
    sums = truth.masks.astype(np.float64) @ np.column_stack(list(standardised.values()))
    number, rows = len(asked.queries), []

    def add(name: str, every: list[Float[np.ndarray, "q n"]], left: bool = False) -> None:
        row = [name]
        for kind, part in groups.items():
            result = trials[kind].result(every)
            low, high = result.estimate.interval
            row.append(f"{100 * result.estimate.value:.0f} ({100 * low:.0f} to {100 * high:.0f})")
            row.append(f"{100 * residual_lds(every, truth, part, sums):.0f}" if left else "")
        rows.append(row)

    for name, x in standardised.items():
        add(f"sum of {name}", both_signs(np.tile(x, (number, 1))))
    for name, of_queries in theirs.items():
        add(f"nearness in {name}", both_signs(-np.abs((of_queries[:, None] - mine[name]) / mine[name].std())))
    for setting in METHODS:
        add(setting.title, score_matrices(attributor, setting, asked), left=True)
    said = []
    for kind, part in groups.items():
        said.append(common_text(kind, truth.losses[:, part].astype(np.float64), list(standardised), sums))
    return rows, "".join(said)


def main() -> None:
    """Print the table and write it to docs/small_studies.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="cifar2-small")
    study = parser.parse_args().study
    folder = StudyFolder(load_study(study))
    truth, asked = load_subsets(folder, "lds"), load_query_set(folder)
    rows, said = rows_of(Attributor(folder), truth, asked)
    header = ["scores"]
    for kind in asked.groups:
        header += [f"LDS, {kind}", "sums taken out"]
    publish(
        f"python -m benchmarks.explain {study}", rows, header, "small_studies.md",
        about=f" {len(truth.masks)} subset models.{said}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
