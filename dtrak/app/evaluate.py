"""View models of the Evaluate page, and the measured reliability that stands beside every answer."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from dtrak.config import LAST, RANDOMISED, ROOT
from dtrak.evaluation.counterfactual import Counterfactuals
from dtrak.evaluation.results import Evaluation, Row
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting

PUBLISHED = ROOT / "assets" / "published_lds.csv"
DATASETS = {
    "cifar2": "CIFAR-2",
    "cifar10": "CIFAR-10",
    "celeba": "CelebA",
    "artbench2": "ArtBench-2",
    "artbench5": "ArtBench-5",
}
SPLIT_OF = {"held-out": "val", "generated": "gen"}
CHOICES = {
    "damping": "λ, damping",
    "timesteps": "K, timesteps",
    "projection_dim": "k, projected numbers",
    "checkpoint": "Checkpoint",
    "output": "Output function",
    "strategy": "Selection of timesteps",
    "draws": "Noise draws",
    "projection_seed": "Projection seed",
}


@dataclass(frozen=True)
class Reliability:
    """How far an answer can be trusted, as measured.

    Attributes:
        text: for people.
        kind: "measured", "weak" if the interval is not above zero, or "unknown".
        row: what was measured, if anything.
    """

    text: str
    kind: Literal["measured", "weak", "unknown"]
    row: Row | None = None


def reliability(evaluation: Evaluation | None, setting: Setting, generated: bool) -> Reliability:
    """The measured LDS of a setting, in words.

    Args:
        generated: whether the picture was drawn by the model; else held-out images are what comes nearest.
    """
    if evaluation is None:
        return Reliability("Not measured: no model of this study was trained again.", "unknown")
    kind = "generated" if generated or "held-out" not in evaluation.kinds else "held-out"
    row = evaluation.of(setting, kind)
    if row is None:
        return Reliability(f"Not measured under this setting ({METHODS[setting.method].title}).", "unknown")
    what = f"on {evaluation.behind[kind]} {kind} images, against {row.subset_models} retrained models"
    notes = _at_damping(row, setting) + (f" But {evaluation.stale}." if evaluation.stale else "")
    low, high = row.interval
    if low > 0:
        return Reliability(f"LDS {interval_text(row)} {what}. 0 is guessing, 100 is perfect.{notes}", "measured", row)
    verdict = "worse than guessing" if high < 0 else "not told apart from guessing"
    return Reliability(f"LDS {interval_text(row)} {what}: {verdict}.{notes}", "weak", row)


def _at_damping(row: Row, setting: Setting) -> str:
    damping = METHODS[setting.method].damping if setting.damping is None else setting.damping
    if row.chosen_damping is None or not isinstance(damping, float):
        return ""
    here = row.at(damping)
    used = "" if here is None else f"; at λ = {damping:.3g}, as here, it is {percent(here)} on all of them"
    return f" That is with λ chosen on other models (about {row.chosen_damping:.2g}){used}."


def interval_text(row: Row) -> str:
    """ "12.3 (9.8 to 15.1)", in hundredths as the literature prints it."""
    low, high = row.interval
    return f"{percent(row.lds_crossfit)} ({percent(low)} to {percent(high)})"


def percent(value: float) -> str:
    """An LDS × 100, with a real minus."""
    return f"{100 * value:.1f}".replace("-", "−")


def verdict(evaluation: Evaluation, queries: str) -> str:
    """Whether D-TRAK beats TRAK here, in one plain sentence."""
    row = evaluation.of(Setting("dtrak"), queries)
    trak = evaluation.of(Setting("trak"), queries)
    if row is None or trak is None or not row.over_trak:
        return ""
    gain, low, high = row.over_trak
    both = f"D-TRAK scores {percent(row.lds_crossfit)}, TRAK {percent(trak.lds_crossfit)}"
    between = f"the difference is {percent(gain)} (95 %: {percent(low)} to {percent(high)})"
    if low > 0:
        return f"**D-TRAK beats TRAK here** on {queries} images: {both}; {between}."
    if high < 0:
        return f"**D-TRAK does not beat TRAK here** on {queries} images; TRAK is better: {both}; {between}."
    return f"**D-TRAK is not told apart from TRAK here** on {queries} images: {both}; {between}."


def best(evaluation: Evaluation, queries: str) -> str:
    """Which methods lead, in one sentence."""
    rows = [row for row in evaluation.own(queries) if not METHODS[row.method].fitted]
    if not rows:
        return ""
    first = rows[0]
    alike = [METHODS[r.method].title for r in rows[1:] if r.interval[1] >= first.interval[0]]
    close = f" Intervals that overlap it: {', '.join(alike)}." if alike else ""
    return f"Highest is {METHODS[first.method].title} with {interval_text(first)}.{close}"


def effect(found: Counterfactuals) -> str:
    """Whether what D-TRAK names moves pictures further than random images and than what TRAK names."""
    words = []
    for other, title in (("random", "random images"), ("trak", "what TRAK names")):
        if found.of("dtrak") and found.of(other):
            mean, low, high = found.further("dtrak", other)
            verdict = "further than" if low > 0 else "less far than" if high < 0 else "not measurably further than"
            between = f"by {mean:+.2f}, 95 %: {low:+.2f} to {high:+.2f}".replace("-", "−")
            words.append(f"**{verdict}** {title} ({between})")
    return f"Leaving out what D-TRAK names moves pictures {'; '.join(words)}." if words else ""


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The LDS table, in hundredths."""
    return [
        {
            "method": Setting.parse(row.setting).title,
            "LDS": round(100 * row.lds_crossfit, 1),
            "95 % from": round(100 * row.interval[0], 1),
            "to": round(100 * row.interval[1], 1),
            "over TRAK": round(100 * row.over_trak[0], 1) if row.over_trak else None,
            "oracle λ": round(100 * row.lds_oracle, 1),
            "λ chosen": " and ".join(dict.fromkeys(f"{d:.3g}" for d in row.dampings)) or "–",
        }
        for row in rows
    ]


def sanity_rows(evaluation: Evaluation, queries: str) -> list[Row]:
    """What must be near zero: chance, and methods on a model with shuffled weights."""
    return [
        row
        for row in evaluation.rows
        if row.queries == queries
        and (METHODS[row.method].control or Setting.parse(row.setting).checkpoint == RANDOMISED)
    ]


@dataclass(frozen=True)
class Curve:
    """One method along one choice.

    Attributes:
        values: of the choice.
        lds, low, high: at each value; low and high are empty where no interval was worked out.
    """

    name: str
    values: tuple[Any, ...]
    lds: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def curves(evaluation: Evaluation, choice: str, queries: str, powers: Sequence[float]) -> list[Curve]:
    """The measured ablations of D-TRAK and TRAK along one choice; λ on all subset models, the others cross-fitted."""
    found = []
    for name in dict.fromkeys(row.method for row in evaluation.rows):
        rows = [row for row in evaluation.rows if row.method == name and row.queries == queries]
        own = next((row for row in rows if row.setting == name), None)
        if choice == "damping":
            if own is not None and len(own.curve) == len(powers):
                found.append(Curve(METHODS[name].title, tuple(10.0**p for p in powers), own.curve))
            continue
        along = _along(name, rows, choice)
        if len(along) > 1:
            values, kept = zip(*along, strict=True)
            low, high = zip(*(row.interval for row in kept), strict=True)
            found.append(Curve(METHODS[name].title, values, tuple(r.lds_crossfit for r in kept), low, high))
    return found


def _along(method: str, rows: Sequence[Row], choice: str) -> list[tuple[Any, Row]]:
    """The most rows that differ from each other in one choice alone, with its value."""
    settings = [(Setting.parse(row.setting), row) for row in rows]
    settings = [(s, row) for s, row in settings if s.checkpoint != RANDOMISED]
    default = getattr(Setting(method), choice)
    groups: dict[Setting, list[tuple[Setting, Row]]] = {}
    for setting, row in settings:
        groups.setdefault(setting.with_(**{choice: default}), []).append((setting, row))
    settings = max(groups.values(), key=len, default=[])
    values = [(getattr(s, choice), row) for s, row in settings]
    if choice == "checkpoint":  # in the order of the training
        values.sort(key=lambda pair: (pair[0] == LAST, pair[0]))
    if choice == "output":
        values = [(value or METHODS[method].output, row) for value, row in values]
    known = [value for value, _ in values if value is not None]
    numbers = bool(known) and not isinstance(known[0], str)
    if numbers:  # None is what is stored: the same as the largest that was tried
        values = [(value, row) for value, row in values if value is not None]
        values.sort(key=lambda pair: pair[0])
    return values


@dataclass(frozen=True)
class PublishedRow:
    """One number of the paper's tables, in hundredths; λ was chosen on the models that it is reported on."""

    method: str
    lds: float
    deviation: float


@cache
def _published() -> list[dict[str, str]]:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published(dataset: str, queries: str, timesteps: int | None = None) -> list[PublishedRow]:
    """The published table of one data set, the best first.

    Args:
        dataset: a key of :data:`DATASETS`.
        timesteps: only rows of this K, and those that have none.
    """
    found = []
    for row in _published():
        if row["dataset"] != dataset or row["split"] != SPLIT_OF[queries]:
            continue
        if timesteps is not None and row["timesteps"] not in ("", str(timesteps)):
            continue
        extra = [
            f"{name} = {row[column]}"
            for name, column in (("K", "timesteps"), ("M", "retrained_models"), ("S", "ensemble"))
            if row[column]
        ]
        mean = float(row["lds_percent_bootstrap_mean"])
        found.append(PublishedRow(" · ".join([row["method"], *extra]), mean, float(row["bootstrap_std"] or 0)))
    return sorted(found, key=lambda row: -row.lds)
