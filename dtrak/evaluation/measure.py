"""The LDS of methods and settings on a study's subset models, with cross-fitted λ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dtrak.config import RANDOMISED
from dtrak.evaluation.lds import Score, bootstrap, lds, lds_with_interval
from dtrak.evaluation.results import POWERS, Row
from dtrak.methods.attributor import Attributor
from dtrak.methods.choices import CHOICES, changed, measured, offer, stored
from dtrak.methods.query import QuerySet, load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth
from dtrak.utils.errors import DtrakError

LEAST_MODELS = 4
HALF_RESAMPLES = 500
NOW_RESAMPLES = 200
ABLATED = ("dtrak", "trak")
Scores = Float[np.ndarray, "q n"]


def evaluate(
    attributor: Attributor,
    settings: Sequence[Setting] | None = None,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """Evaluate settings, by default :func:`all_settings`; one row per setting and kind of query.

    The features of the evaluation queries must be built. By default, settings with missing features are skipped.

    Args:
        report: called with (title of the setting, settings done, total settings).

    Raises:
        DtrakError: there are fewer than four subset models, or features of a given setting are missing.
    """
    truth, asked = judged = judges(attributor)
    chosen = all_settings(attributor) if settings is None else settings
    trak = _trak(attributor, judged)
    rows = []
    for done, setting in enumerate(chosen):
        report(setting.title, done, len(chosen))
        generated_only = METHODS[setting.method].generated_only
        try:
            every = score_matrices(attributor, setting, asked)
        except DtrakError:
            if settings is not None:
                raise
            continue
        for name, part in asked.groups.items():
            if not (generated_only and name == "held-out"):
                found = _crossfit(every, truth, part)
                rows.append(_row(setting, name, every, found, trak.get(name), truth, part))
    report("", len(chosen), len(chosen))
    return rows


def judges(attributor: Attributor) -> tuple[SubsetTruth, QuerySet]:
    """The subset models that methods are evaluated against, and the evaluation queries.

    Raises:
        DtrakError: there are too few.
    """
    truth = attributor.subsets("lds")
    if len(truth.masks) < LEAST_MODELS:
        raise DtrakError(
            f"There are {len(truth.masks)} subset models; an LDS needs at least {LEAST_MODELS}, and 64 or more to be "
            "reliable.",
            hint=f"python -m index_builder retrain {attributor.folder.study.name}",
        )
    return truth, load_query_set(attributor.folder)


def all_settings(attributor: Attributor) -> list[Setting]:
    """Each available method's default setting, all ablations of D-TRAK and TRAK, and the shuffled-weights control."""
    found = [Setting(method.name) for method in attributor.methods()]
    for name in ABLATED:
        if Setting(name) not in found:
            continue
        for choice in measured("alone"):
            values = offer(attributor, Setting(name), choice).values
            found += [s for v in values if (s := changed(attributor, Setting(name), choice, v)) and s not in found]
        # another output function of TRAK is another method
        for choice in measured("aligned") if name == ABLATED[0] else ("checkpoint", "strategy"):
            found += [s for s in aligned_settings(attributor, name, choice) if s not in found]
        found.append(Setting(name, checkpoint=RANDOMISED))
    return list(dict.fromkeys(found))


def aligned_settings(attributor: Attributor, method: str, choice: str) -> list[Setting]:
    """One method with each value of a choice, all reduced to the smallest common timesteps and projection_dim."""
    own = METHODS[method].output if choice == "output" else CHOICES[choice].default
    members = {name for name, kind in attributor.variants.items() if kind == "member"}
    values = [v for v in offer(attributor, Setting(method), choice).values if v not in members]
    tried = [s for v in values if (s := changed(attributor, Setting(method), choice, v))]
    sides = [attributor.sides(setting)[0] for setting in tried]
    if len(sides) < 2:
        return []
    alike = {"timesteps": min(len(s.pairs) for s in sides), "projection_dim": min(s.dim for s in sides)}
    found = [setting.with_(**alike) for setting in tried]
    found = [s.with_(output=None) if choice == "output" and s.output == own else s for s in found]
    return [s for s in found if stored(attributor, s)]


def score_matrices(attributor: Attributor, setting: Setting, asked: QuerySet) -> list[Scores]:
    """The scores of all queries [Q, N]: one matrix for each λ of :data:`POWERS`, or a single one without damping.

    Methods that follow the sampling trajectory score generated queries only; the other rows are zero.

    Raises:
        DtrakError: features or models that the setting needs are missing.
    """
    return METHODS[setting.method].score_matrices(attributor, setting, asked, [10.0**p for p in POWERS])


def score_now(
    attributor: Attributor,
    setting: Setting,
    queries: str,
    judged: tuple[SubsetTruth, QuerySet],
    resamples: int = NOW_RESAMPLES,
) -> Score:
    """The LDS of one setting at its own λ, fast enough for interactive use.

    Args:
        queries: "held-out" or "generated"; generated ones if the study holds out no images.
        judged: from :func:`judges`.
        resamples: bootstrap resamples.

    Raises:
        DtrakError: features of the evaluation queries that the setting needs are missing.
    """
    truth, asked = judged
    method = METHODS[setting.method]
    fixed = setting if method.damping is None or setting.damping else setting.with_(damping=method.damping)
    part = asked.groups.get(queries) or asked.groups["generated"]
    (scores,) = score_matrices(attributor, fixed, asked)
    return lds_with_interval(scores[part], truth.masks, truth.losses[:, part], resamples)


def _trak(attributor: Attributor, judged: tuple[SubsetTruth, QuerySet]) -> dict[str, "_Crossfit"]:
    """The baseline of ``Row.over_trak``, by kind of query; empty if TRAK is not built."""
    truth, asked = judged
    try:
        every = score_matrices(attributor, Setting("trak"), asked)
    except DtrakError:
        return {}
    return {name: _crossfit(every, truth, part) for name, part in asked.groups.items()}


@dataclass(frozen=True)
class _Crossfit:
    """λ chosen on each half of the subset models, LDS on the other; resamples are paired between settings."""

    chosen: list[int]
    mean: float
    resampled: Float[np.ndarray, " resamples"]

    @property
    def interval(self) -> tuple[float, float]:
        low, high = np.quantile(self.resampled, [0.025, 0.975])
        return float(low), float(high)


def _crossfit(every: list[Scores], truth: SubsetTruth, part: slice) -> _Crossfit:
    masks, losses = truth.masks, truth.losses[:, part]
    even = np.arange(len(masks)) % 2 == 0
    chosen, means, resampled = [], [], []
    for half in (even, ~even):
        best = int(np.argmax([lds(scores[part], masks[half], losses[half]).mean() for scores in every]))
        other = masks[~half], losses[~half]
        chosen.append(best)
        means.append(lds(every[best][part], *other).mean())
        resampled.append(bootstrap(every[best][part], *other, HALF_RESAMPLES, key=f"half {len(chosen)}"))
    return _Crossfit(chosen, float(np.mean(means)), np.mean(resampled, axis=0))


def _row(
    setting: Setting, name: str, every: list[Scores], found: _Crossfit, trak: _Crossfit | None,
    truth: SubsetTruth, part: slice,
) -> Row:  # fmt: skip
    curve = [float(lds(scores[part], truth.masks, truth.losses[:, part]).mean()) for scores in every]
    over_trak: tuple[float, ...] = ()
    if trak is not None:
        low, high = np.quantile(found.resampled - trak.resampled, [0.025, 0.975])
        over_trak = (found.mean - trak.mean, float(low), float(high))
    return Row(
        method=setting.method,
        setting=setting.text,
        queries=name,
        lds_crossfit=found.mean,
        lds_oracle=max(curve),
        interval=found.interval,
        over_trak=over_trak,
        subset_models=len(truth.masks),
        seeds=truth.seeds,
        dampings=tuple(10.0 ** POWERS[i] for i in found.chosen) if len(every) > 1 else (),
        curve=tuple(curve),
    )
