"""Stored evaluation results: the LDS of each setting, in ``evaluation.json``."""

import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from dtrak.evaluation.lds import ceiling, reliability
from dtrak.methods.query import QuerySet, load_query_set
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth
from dtrak.study.folder import StudyFolder, model_digest, truth_folders
from dtrak.utils.files import read_json, write_json

T = TypeVar("T")
RESULTS_FILE = "evaluation.json"
POWERS = tuple(float(p) for p in np.arange(-4.0, 4.01, 0.5))  # log10 of the relative λ grid


@dataclass(frozen=True)
class Row:
    """The LDS of one setting on one kind of query.

    Attributes:
        queries: "held-out" or "generated".
        lds_crossfit: λ chosen on half of the subset models, LDS on the other half; mean of both directions.
        lds_oracle: the best LDS over λ on all subset models, as papers report; optimistic.
        interval: 95 % bootstrap interval of lds_crossfit over subset models and queries (BCa).
        over_trak: difference from TRAK's lds_crossfit, with its paired 95 % interval (mean, low, high); empty
            without TRAK.
        over_baseline: the same from the best baseline, which is what the method adds; empty without baselines.
        baseline: the best baseline's name.
        p_value: of over_baseline, Holm-adjusted over the methods; None for rows that are not a method's default.
        features: timesteps K, projection dimension k and number of models, in words; empty without features.
        swap: lds_crossfit with the scores of another query of the same label; high if the scores say little more
            than the label.
        partial: lds_crossfit with the numbers of images of each label and creator taken out.
        seeds: trainings per subset, at least.
        dampings: the relative λ chosen on each half; empty without damping.
        curve: the LDS on all subset models at each λ of the grid; a single value without damping.
        seconds: time of one query on this machine, with its features; None where it was not measured.
        other_seed: the LDS on subset models trained with another seed, for a method that knows the seed of the study's
            training; None where there are none.
    """

    method: str
    setting: str
    queries: str
    lds_crossfit: float
    lds_oracle: float
    interval: tuple[float, float]
    over_trak: tuple[float, ...]
    over_baseline: tuple[float, ...]
    baseline: str
    p_value: float | None
    features: str
    swap: float
    partial: float
    subset_models: int
    seeds: int
    dampings: tuple[float, ...]
    curve: tuple[float, ...]
    seconds: float | None = None
    other_seed: float | None = None

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
class FamilyRow:
    """The LDS of a method's default on another family of subset models, at the λ chosen on the halves.

    Attributes:
        family: of :data:`dtrak.methods.subsets.FAMILIES`.
        interval: 95 %, over subset models and queries.
    """

    method: str
    queries: str
    family: str
    lds: float
    interval: tuple[float, float]
    subset_models: int


@dataclass(frozen=True)
class Naming:
    """How often the significance test of a method names a source, and whether retraining agrees.

    Attributes:
        rates: for each kind of image, how many were tested and how many had a source named. Unrelated images are
            tested against the other half of them.
        named, others: the mean measured influence of the pairs (query, training image) that are named, and of the
            others among the ten highest scores: the difference of the loss between subset models without and with
            the image, in standard deviations over the models, label and creator counts taken out. Each with its
            standard error (jackknife over models) and the number of pairs; empty without such pairs.
    """

    method: str
    rates: dict[str, tuple[int, int]]
    named: tuple[float, ...]
    others: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """The evaluation results of a study.

    Attributes:
        families: of methods on other families of subset models.
        naming: of the significance test, for some methods.
        behind: sample sizes, settings and digests that the results depend on, as :func:`save_evaluation` names them.
        stale: what has changed since the measurement, as a sentence; empty if nothing.
    """

    rows: tuple[Row, ...]
    behind: dict[str, Any]
    stale: str = ""
    families: tuple[FamilyRow, ...] = ()
    naming: tuple[Naming, ...] = ()

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
    folder: StudyFolder,
    rows: Sequence[Row],
    truth: SubsetTruth,
    fitted: SubsetTruth | None = None,
    families: Sequence[FamilyRow] = (),
    naming: Sequence[Naming] = (),
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
        "ceilings": _ceilings(truth, asked),
        "repeated": 0 if truth.repeats is None else len(truth.repeats[0]),
        "noise_draws": folder.study.truth.draws,
        "measured": time.strftime("%Y-%m-%d"),
        **model_and_data(folder),
        **truth.recipe,
    }
    content = {
        "rows": [row.as_dict() for row in rows],
        "families": [asdict(row) for row in families],
        "naming": [asdict(row) for row in naming],
        "behind": behind,
    }
    write_json(truth_folders(folder)[0] / RESULTS_FILE, content)


def load_evaluation(folder: StudyFolder) -> Evaluation | None:
    """The results measured here or shipped with the study, or None.

    Of two, those that are not stale are preferred, then those with more trainings.
    """
    found = []
    for root in truth_folders(folder):
        if (root / RESULTS_FILE).exists():
            content = read_json(root / RESULTS_FILE)
            known, needed = {f.name for f in fields(Row)}, {f.name for f in fields(Row) if f.default is MISSING}
            if not all(needed <= set(row) <= known for row in content["rows"]):
                continue  # of an earlier version
            rows = tuple(_as(Row, row) for row in content["rows"])
            families = tuple(_as(FamilyRow, row) for row in content["families"])
            naming = tuple(_as(Naming, {**row, "rates": _tuples(row["rates"])}) for row in content["naming"])
            stale = what_changed(folder, content["behind"])
            found.append(Evaluation(rows, content["behind"], stale, families, naming))
    return max(found, key=lambda e: (not e.stale, e.behind["trainings"]), default=None)


def model_and_data(folder: StudyFolder) -> dict[str, str]:
    """Digests of the training images and the model that results belong to."""
    return {"data": folder.table.fingerprint(), "model": model_digest(folder)}


def what_changed(folder: StudyFolder, behind: dict[str, Any]) -> str:
    """What has changed since the measurement, as a sentence; empty if nothing."""
    words, now = {"data": "the training images", "model": "the model"}, model_and_data(folder)
    changed = [word for key, word in words.items() if behind[key] != now[key]]
    return f"{' and '.join(changed)} changed since this was measured" if changed else ""


def _tuples(rates: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    return {kind: tuple(counts) for kind, counts in rates.items()}


def _as(kind: type[T], content: dict[str, Any]) -> T:
    """A row from JSON, whose lists are tuples."""
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def _ceilings(truth: SubsetTruth, asked: QuerySet) -> dict[str, float]:
    """The LDS of a perfect prediction by kind of query, from subsets trained with two seeds; empty without such."""
    if truth.repeats is None:
        return {}
    agreement = reliability(*truth.repeats)
    return {name: ceiling(float(agreement[part].mean()), truth.seeds) for name, part in asked.groups.items()}
