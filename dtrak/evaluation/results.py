"""What was measured, kept in one file, so that any page can say how well a method did."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dtrak.methods.query import load_query_set
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth
from dtrak.study.folder import StudyFolder, model_digest, truth_folders
from dtrak.utils.files import read_json, write_json

RESULTS_FILE = "evaluation.json"
POWERS = tuple(float(p) for p in np.arange(-4.0, 4.01, 0.5))  # of ten: the λ that are tried


@dataclass(frozen=True)
class Row:
    """How well one setting predicts retraining, on one kind of query.

    Attributes:
        queries: "held-out" or "generated".
        lds_crossfit: λ chosen on half of the subset models, reported on the other half, both ways, averaged.
        lds_oracle: the best over λ on all subset models, as the paper reports; it flatters.
        interval: of lds_crossfit: 95 % of bootstrap resamples of the subset models of either half, averaged.
        over_trak: how much higher than TRAK's own row, low and high, from the same resamples; empty without TRAK.
        seeds: trainings behind each subset model, at least.
        dampings: the λ chosen on either half, relative; empty where λ does not enter.
        curve: the LDS on all subset models at each λ of the grid, or alone.
    """

    method: str
    setting: str
    queries: str
    lds_crossfit: float
    lds_oracle: float
    interval: tuple[float, float]
    over_trak: tuple[float, ...]
    subset_models: int
    seeds: int
    dampings: tuple[float, ...]
    curve: tuple[float, ...]

    def at(self, damping: float) -> float | None:
        """The LDS on all subset models at one λ, between those that were tried; None where λ does not enter."""
        if len(self.curve) != len(POWERS):
            return None
        return float(np.interp(np.log10(damping), POWERS, self.curve))

    @property
    def chosen_damping(self) -> float | None:
        """The geometric mean of the λ chosen on either half."""
        return float(f"{np.exp(np.mean(np.log(self.dampings))):.4g}") if self.dampings else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON carries it."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The rows of a study, and what stands behind them.

    Attributes:
        behind: counts and choices, by the names of :func:`save_evaluation`.
        stale: what has changed since, in plain words; empty if nothing.
    """

    rows: tuple[Row, ...]
    behind: dict[str, Any]
    stale: str = ""

    @cached_property
    def _by_setting(self) -> dict[tuple[str, str], Row]:
        return {(row.setting, row.queries): row for row in self.rows}

    @property
    def kinds(self) -> list[str]:
        """The kinds of queries, those that people mostly ask about first."""
        return sorted({row.queries for row in self.rows})

    def own(self, queries: str) -> list[Row]:
        """Each method under its own choices, the best first."""
        own = [row for row in self.rows if row.setting == row.method and row.queries == queries]
        return sorted(own, key=lambda row: -row.lds_crossfit)

    def of(self, setting: Setting, queries: str) -> Row | None:
        """The row of a setting; λ does not matter, for each row has chosen its own."""
        return self._by_setting.get((setting.with_(damping=None).text, queries))


def save_evaluation(
    folder: StudyFolder, rows: Sequence[Row], truth: SubsetTruth, fitted: SubsetTruth | None = None
) -> None:
    """Keep the rows in the workspace, with what stands behind them and what they belong to.

    Args:
        fitted: the models that fitted methods were fitted to.
    """
    asked = load_query_set(folder)
    behind = {
        "subset_models": len(truth.masks),
        "trainings": len(truth.masks) * truth.seeds,
        "seeds": truth.seeds,
        "fitted": None if fitted is None else len(fitted.masks),
        "held-out": asked.heldout,
        "generated": len(asked.queries) - asked.heldout,
        "noise_draws": 1,
        "measured": time.strftime("%Y-%m-%d"),
        **model_and_data(folder),
        **truth.recipe,
    }
    content = {"rows": [row.as_dict() for row in rows], "behind": behind}
    write_json(truth_folders(folder)[0] / RESULTS_FILE, content)


def load_evaluation(folder: StudyFolder) -> Evaluation | None:
    """What was measured here or came with the study, or None; of two, what holds still, then what rests on more."""
    found = []
    for root in truth_folders(folder):
        if (root / RESULTS_FILE).exists():
            content = read_json(root / RESULTS_FILE)
            rows = tuple(_row(row) for row in content["rows"])
            found.append(Evaluation(rows, content["behind"], what_changed(folder, content["behind"])))
    return max(found, key=lambda e: (not e.stale, e.behind["trainings"]), default=None)


def model_and_data(folder: StudyFolder) -> dict[str, str]:
    """Digests of the training images and the model that a measurement belongs to."""
    return {"data": folder.table.fingerprint(), "model": model_digest(folder)}


def what_changed(folder: StudyFolder, behind: dict[str, Any]) -> str:
    """What is not as it was measured, in plain words; empty if nothing."""
    words, now = {"data": "the training images", "model": "the model"}, model_and_data(folder)
    changed = [word for key, word in words.items() if behind[key] != now[key]]
    return f"{' and '.join(changed)} changed since this was measured" if changed else ""


def _row(content: dict[str, Any]) -> Row:
    lists = {key: tuple(content[key]) for key in ("interval", "over_trak", "dampings", "curve")}
    return Row(**{**content, **lists})
