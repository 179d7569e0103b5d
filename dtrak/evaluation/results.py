"""Stored evaluation results: the LDS of each setting, in ``evaluation.json``."""

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
POWERS = tuple(float(p) for p in np.arange(-4.0, 4.01, 0.5))  # log10 of the relative λ grid


@dataclass(frozen=True)
class Row:
    """The LDS of one setting on one kind of query.

    Attributes:
        queries: "held-out" or "generated".
        lds_crossfit: λ chosen on half of the subset models, LDS on the other half; mean of both directions.
        lds_oracle: the best LDS over λ on all subset models, as papers report; optimistic.
        interval: 95 % bootstrap interval of lds_crossfit over subset models.
        over_trak: difference from TRAK's lds_crossfit, with its paired 95 % interval (mean, low, high); empty
            without TRAK.
        seeds: trainings per subset, at least.
        dampings: the relative λ chosen on each half; empty without damping.
        curve: the LDS on all subset models at each λ of the grid; a single value without damping.
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
        """The LDS on all subset models at one λ, interpolated in log λ; None without damping."""
        if len(self.curve) != len(POWERS):
            return None
        return float(np.interp(np.log10(damping), POWERS, self.curve))

    @property
    def chosen_damping(self) -> float | None:
        """The geometric mean of the λ chosen on each half; None without damping."""
        return float(f"{np.exp(np.mean(np.log(self.dampings))):.4g}") if self.dampings else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation results of a study.

    Attributes:
        behind: sample sizes, settings and digests that the results depend on, as :func:`save_evaluation` names them.
        stale: what has changed since the measurement, as a sentence; empty if nothing.
    """

    rows: tuple[Row, ...]
    behind: dict[str, Any]
    stale: str = ""

    @cached_property
    def _by_setting(self) -> dict[tuple[str, str], Row]:
        return {(row.setting, row.queries): row for row in self.rows}

    @property
    def kinds(self) -> list[str]:
        """The kinds of queries, generated ones first."""
        return sorted({row.queries for row in self.rows})

    def own(self, queries: str) -> list[Row]:
        """Each method's default setting, ordered by LDS, best first."""
        own = [row for row in self.rows if row.setting == row.method and row.queries == queries]
        return sorted(own, key=lambda row: -row.lds_crossfit)

    def of(self, setting: Setting, queries: str) -> Row | None:
        """The row of a setting, or None; λ is ignored, as each row chooses its own."""
        return self._by_setting.get((setting.with_(damping=None).text, queries))


def save_evaluation(
    folder: StudyFolder, rows: Sequence[Row], truth: SubsetTruth, fitted: SubsetTruth | None = None
) -> None:
    """Write the rows to the workspace, with sample sizes, settings and the digests of data and model.

    Args:
        truth: the subset models that methods were evaluated against.
        fitted: the subset models that fitted methods were fitted to.
    """
    asked = load_query_set(folder)
    behind = {
        "subset_models": len(truth.masks),
        "trainings": len(truth.masks) * truth.seeds,
        "seeds": truth.seeds,
        "fitted": None if fitted is None else len(fitted.masks),
        "held-out": asked.heldout,
        "generated": len(asked.queries) - asked.heldout,
        "noise_draws": folder.study.truth.draws,
        "measured": time.strftime("%Y-%m-%d"),
        **model_and_data(folder),
        **truth.recipe,
    }
    content = {"rows": [row.as_dict() for row in rows], "behind": behind}
    write_json(truth_folders(folder)[0] / RESULTS_FILE, content)


def load_evaluation(folder: StudyFolder) -> Evaluation | None:
    """The results measured here or shipped with the study, or None.

    Of two, those that are not stale are preferred, then those with more trainings.
    """
    found = []
    for root in truth_folders(folder):
        if (root / RESULTS_FILE).exists():
            content = read_json(root / RESULTS_FILE)
            rows = tuple(_row(row) for row in content["rows"])
            found.append(Evaluation(rows, content["behind"], what_changed(folder, content["behind"])))
    return max(found, key=lambda e: (not e.stale, e.behind["trainings"]), default=None)


def model_and_data(folder: StudyFolder) -> dict[str, str]:
    """Digests of the training images and the model that results belong to."""
    return {"data": folder.table.fingerprint(), "model": model_digest(folder)}


def what_changed(folder: StudyFolder, behind: dict[str, Any]) -> str:
    """What has changed since the measurement, as a sentence; empty if nothing."""
    words, now = {"data": "the training images", "model": "the model"}, model_and_data(folder)
    changed = [word for key, word in words.items() if behind[key] != now[key]]
    return f"{' and '.join(changed)} changed since this was measured" if changed else ""


def _row(content: dict[str, Any]) -> Row:
    lists = {key: tuple(content[key]) for key in ("interval", "over_trak", "dampings", "curve")}
    return Row(**{**content, **lists})
