"""``python -m benchmarks.exact OUT``: does exact influence predict retraining, and do instant methods recover it?

Exact influence is a derivative: it says what a small change of an image's weight does. Whether it says what *removing*
images does is measured here, on a study whose training is smooth: a small pixel model that knows half of the faces
learns 200 others. Everything is kept in OUT and goes on after a kill.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from scipy.stats import spearmanr

from benchmarks.report import publish, screenshot
from benchmarks.smooth import influence, losses_without, prepared, queries_of, say
from dtrak.build.features import ablation_parts, build_features, build_indexes
from dtrak.build.pipeline import compute_features, fit_ekfac
from dtrak.build.retrain import retrain_subsets
from dtrak.config import RANDOMISED
from dtrak.evaluation.lds import Estimate, ceiling, reliability
from dtrak.evaluation.measure import Trial
from dtrak.evaluation.results import POWERS
from dtrak.evaluation.subsets import query_set
from dtrak.execution.engines import Local
from dtrak.methods.attributor import Attributor
from dtrak.methods.exact import path_of
from dtrak.methods.query import QuerySet
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import Family, SubsetTruth
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError

FAMILIES: dict[Family, int] = {"lds": 48, "remove-20": 40, "remove-5": 40, "creators": 6}
SHARES = ("50 %", "50 %, another seed", "20 %", "5 %")  # that are judged by their LDS
REMOVALS = (2, 10, 40)  # images: 1, 5 and 20 %
ASKED = 8  # queries whose highest and lowest images are removed
SETTINGS = {
    "Exact influence": Setting("exact"),
    "Unlearning": Setting("unlearning"),
    "D-TRAK": Setting("dtrak"),
    "TRAK": Setting("trak"),
    "DAS": Setting("das"),
    "EK-FAC influence": Setting("ekfac"),
    "Gradient dot": Setting("grad-dot"),
    "D-TRAK, network shuffled": Setting("dtrak", checkpoint=RANDOMISED),
    "TRAK, network shuffled": Setting("trak", checkpoint=RANDOMISED),
    "Pixels, RBF kernel": Setting("pixel-rbf"),
    "Same label": Setting("same-label"),
    "Random": Setting("random"),
}
DAMPINGS = [10.0**power for power in POWERS]
HALF = "Exact influence, at w = ½"
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Change:
    """A removal of training images, and what it does to one query's loss.

    Attributes:
        kind: how the images were chosen.
        removed: their number.
        predicted: the sum of their exact influence, a change of the loss.
        actual: the change of the loss when they are left out of the training.
    """

    kind: str
    query: int
    removed: int
    predicted: float
    actual: float


def build(folder: StudyFolder, engine: Local) -> None:
    """Compute the features of training images and evaluation queries, with the shuffled network's."""
    query_set(folder)
    build_indexes(folder, build_features(folder, engine))
    sets = folder.study.sets_of("train") + folder.study.sets_of("truth")
    compute_features(folder, ablation_parts(sets), engine)
    fit_ekfac(folder)


def changes(
    folder: StudyFolder, attributor: Attributor, exact: Float[np.ndarray, "q n"], engine: Local
) -> list[Change]:
    """What removals do: random ones of 5 and 20 %, single creators, and the highest and lowest of some queries."""
    wanted = []
    for query in range(ASKED):
        order = np.argsort(-exact[query])
        for size in REMOVALS:
            wanted.append(("highest", query, tuple(sorted(order[:size].tolist()))))
            wanted.append(("lowest", query, tuple(sorted(order[-size:].tolist()))))
    full, *losses = losses_without(folder, [(), *(rows for _, _, rows in wanted)], engine)
    found = [
        Change(kind, query, len(rows), float(exact[query, list(rows)].sum()), float(loss[query] - full[query]))
        for (kind, query, rows), loss in zip(wanted, losses, strict=True)
    ]
    truths = truths_of(attributor)
    for kind, share in (("random", "5 %"), ("random", "20 %"), ("creator", "a creator"), ("half", "50 %")):
        truth = truths[share]
        for mask, loss in zip(truth.masks, truth.losses, strict=True):
            for query in range(len(exact)):
                predicted, actual = float(exact[query, ~mask].sum()), float(loss[query] - full[query])
                found.append(Change(kind, query, int((~mask).sum()), predicted, actual))
    return found


def scores_of(
    attributor: Attributor, setting: Setting, asked: QuerySet, dampings: Sequence[float]
) -> list[Float[np.ndarray, "q n"]]:
    """The scores of all queries, one matrix for each λ; also of a method that has no stored features."""
    if setting.method != "unlearning":
        return METHODS[setting.method].score_matrices(attributor, setting, asked, dampings)
    if setting not in _slow:
        features = (attributor.features(query, [setting], by_block=False) for query in asked.queries)
        rows = [attributor.scores(setting, *one)[0] for one in zip(asked.queries, features, strict=True)]
        _slow[setting] = np.stack(rows)
    return [_slow[setting]]


_slow: dict[Setting, Float[np.ndarray, "q n"]] = {}


def truths_of(attributor: Attributor) -> dict[str, SubsetTruth]:
    """The retrained models by what was left out; halves also with another training seed than the exact influence."""
    halves = attributor.subsets("lds")
    assert halves.repeats is not None
    same, other = (replace(halves, losses=losses) for losses in halves.repeats)
    return {
        "50 %": same,
        "50 %, another seed": other,
        "20 %": attributor.subsets("remove-20"),
        "5 %": attributor.subsets("remove-5"),
        "a creator": attributor.subsets("creators"),
    }


def lds_rows(attributor: Attributor, asked: QuerySet, half: Float[np.ndarray, "q n"]) -> Iterator[tuple[str, ...]]:
    """The LDS of each method for each share removed."""
    truths, part = truths_of(attributor), asked.groups["held-out"]
    trials = [Trial(attributor.table, truths[share], asked, part) for share in SHARES]
    every = {name: partial(scores_of, attributor, setting, asked, DAMPINGS) for name, setting in SETTINGS.items()}
    for name, scores in [*every.items(), (HALF, lambda: [half])]:
        try:
            matrices = scores()
        except DtrakError as reason:
            print(f"{name}: {reason}")
            continue
        results = [trial.result(matrices) for trial in trials]
        yield name, *(_shown(result.estimate) for result in results), f"{100 * results[-1].swap:.0f}"
    if repeats := truths["50 %"].repeats:
        agreement = reliability(*repeats)[part]
        best = f"{100 * ceiling(float(agreement.mean()), 1):.0f}"
        yield "a perfect prediction for another seed", "", best, "", "", ""


def _shown(found: Estimate) -> str:
    low, high = found.interval
    return f"{100 * found.value:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def recovered_rows(
    attributor: Attributor, asked: QuerySet, exact: Float[np.ndarray, "q n"]
) -> Iterator[tuple[str, ...]]:
    """How alike each method's ranking and the exact one are: rank correlation, and how many of the ten highest."""
    for name, setting in SETTINGS.items():
        damping = METHODS[setting.method].damping
        if setting.method == "exact":
            continue
        try:
            (scores,) = scores_of(attributor, setting, asked, [damping or 1.0])
        except DtrakError:
            continue
        pairs = list(zip(scores, exact, strict=True))
        alike = [spearmanr(mine, theirs).statistic for mine, theirs in pairs]
        top = [len({*np.argsort(-mine)[:10]} & {*np.argsort(-theirs)[:10]}) for mine, theirs in pairs]
        yield name, f"{np.nanmean(alike):.2f}", f"{np.mean(top):.1f}"


def change_rows(found: Sequence[Change]) -> Iterator[tuple[str, ...]]:
    """By how the images were chosen: how the predicted and the actual change of the loss agree."""
    for kind, removed in sorted({(c.kind, 0 if c.kind == "creator" else c.removed) for c in found}):
        these = [c for c in found if c.kind == kind and removed in (0, c.removed)]
        predicted, actual = (np.array([getattr(c, name) for c in these]) for name in ("predicted", "actual"))
        within = [
            spearmanr(predicted[rows], actual[rows]).statistic
            for query in {c.query for c in these}
            if len(rows := [i for i, c in enumerate(these) if c.query == query]) > 3
        ]
        slope = float(predicted @ actual / (predicted @ predicted))
        signs, rises = np.mean(np.sign(predicted) == np.sign(actual)), np.mean(actual > 0)
        overall = spearmanr(predicted, actual).statistic
        of_query = f"{np.mean(within):.2f}" if within else ""
        told = (f"{rises:.0%}", f"{signs:.0%}", f"{overall:.2f}", of_query, f"{slope:.2f}")
        yield kind, str(removed or "all"), str(len(these)), *told


def draw_figure(found: Sequence[Change]) -> None:
    """Plot the actual change of the loss over the predicted one, to docs/exact.png."""
    figure = go.Figure()
    colours = {"random": "#9aa4b2", "creator": "#e08e0b", "lowest": "#c0392b", "highest": "#1f77b4"}
    for kind, colour in colours.items():
        these = [c for c in found if c.kind == kind]
        x, y = [1e3 * c.predicted for c in these], [1e3 * c.actual for c in these]
        size = 4 if kind == "random" else 8
        figure.add_scatter(x=x, y=y, mode="markers", name=kind, marker={"color": colour, "size": size, "opacity": 0.6})
    ends = [1e3 * pick(c.predicted for c in found if c.kind in colours) for pick in (min, max)]
    line = {"dash": "dot", "color": "grey"}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="as predicted", line=line)
    figure.update_layout(
        width=760, height=480, template="plotly_white", margin={"t": 20, "b": 50}, legend_title_text="removed",
        xaxis_title="predicted change of the loss, × 1000", yaxis_title="actual change, × 1000",
    )  # fmt: skip
    screenshot(figure, "exact.png")


def main() -> None:
    """Compute everything, and write three tables and a figure to docs/exact.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    out, engine = arguments.out.resolve(), Local(arguments.workers)
    folder = prepared(out)
    for family, count in FAMILIES.items():
        retrain_subsets(folder, family, count, 1, engine, report=partial(say, f"models of {family}"))
    retrain_subsets(folder, "lds", FAMILIES["lds"], 2, engine, report=partial(say, "second seeds"))
    build(folder, engine)
    asked, attributor = queries_of(folder), Attributor(folder)
    half = influence(folder, asked, engine)
    exact = np.stack([np.load(path_of(folder, query)) for query in asked.queries]).astype(np.float64)
    header = ("method", *(f"without {share}" for share in SHARES), "5 %, another query's scores")
    about = " LDS × 100 with 95 % intervals; each method's λ is cross-fitted."
    publish("python -m benchmarks.exact", list(lds_rows(attributor, asked, half)), header, "exact.md", about)
    header = ("method", "rank correlation with the exact influence", "of its ten highest images")
    rows = list(recovered_rows(attributor, asked, exact))
    publish("python -m benchmarks.exact, rankings", rows, header, "exact.md")
    found = changes(folder, attributor, exact, engine)
    header = (
        "images removed",
        "number",
        "cases",
        "loss rises",
        "sign predicted",
        "rank correlation",
        "within a query",
        "slope",
    )
    publish("python -m benchmarks.exact, removals", list(change_rows(found)), header, "exact.md")
    draw_figure(found)


if __name__ == "__main__":
    main()
