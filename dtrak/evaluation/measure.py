"""The LDS of methods and settings on a study's subset models, with λ chosen on some and reported on others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dtrak.config import LAST, RANDOMISED
from dtrak.evaluation.lds import Score, bootstrap, lds, lds_with_interval
from dtrak.evaluation.results import POWERS, Row
from dtrak.methods.attributor import Attributor
from dtrak.methods.choices import changed, offer, stored
from dtrak.methods.query import QuerySet, load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import SubsetTruth
from dtrak.utils.errors import DtrakError

LEAST_MODELS = 4
HALF_RESAMPLES = 500
NOW_RESAMPLES = 200
ABLATED = ("dtrak", "trak")
CHOICES = ("timesteps", "draws", "projection_dim", "projection_seed")
ALIGNED = ("checkpoint", "strategy", "output")  # stored with different timesteps or projections
Scores = Float[np.ndarray, "q n"]


def evaluate(
    attributor: Attributor,
    settings: Sequence[Setting] | None = None,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """Rows for some settings, by default of :func:`all_settings`.

    The features of the truth's queries must be built; what a setting lacks leaves it out.

    Raises:
        DtrakError: there are fewer than four subset models, or ``settings`` were given and one lacks something.
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
    """The subset models that methods are scored on, and the queries they were asked about.

    Raises:
        DtrakError: there are too few.
    """
    truth = attributor.subsets("lds")
    if len(truth.masks) < LEAST_MODELS:
        raise DtrakError(
            f"There are {len(truth.masks)} subset models; an LDS needs {LEAST_MODELS} at least, and says little "
            "below 64.",
            hint=f"python -m index_builder retrain {attributor.folder.study.name}",
        )
    return truth, load_query_set(attributor.folder)


def all_settings(attributor: Attributor) -> list[Setting]:
    """Each built method's own setting, each choice of the ablations of D-TRAK and TRAK, and the randomised model."""
    found = [Setting(method.name) for method in attributor.methods()]
    for name in ABLATED:
        if Setting(name) not in found:
            continue
        for choice in CHOICES:
            values = offer(attributor, Setting(name), choice).values
            found += [s for v in values if (s := changed(attributor, Setting(name), choice, v)) and s not in found]
        for choice in ALIGNED if name == ABLATED[0] else ("checkpoint", "strategy"):  # another output is another method
            found += [s for s in aligned_settings(attributor, name, choice) if s not in found]
        found.append(Setting(name, checkpoint=RANDOMISED))
    return list(dict.fromkeys(found))


def aligned_settings(attributor: Attributor, method: str, choice: str) -> list[Setting]:
    """One method along a choice, all with the timesteps and the projection that the least of them has."""
    own = {"checkpoint": LAST, "strategy": "uniform", "output": METHODS[method].output}[choice]
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
    """The scores of all queries: one matrix for each λ of :data:`POWERS`, or one alone where λ does not enter.

    Methods along the sampler's path have scores of generated queries only; the others' rows are zero.

    Raises:
        DtrakError: something is not built.
    """
    return METHODS[setting.method].score_matrices(attributor, setting, asked, [10.0**p for p in POWERS])


def score_now(
    attributor: Attributor,
    setting: Setting,
    queries: str,
    judged: tuple[SubsetTruth, QuerySet],
    resamples: int = NOW_RESAMPLES,
) -> Score:
    """The LDS of one setting at its own λ, fast enough to follow a toggle.

    Args:
        queries: "held-out" or "generated"; where none was held out, the generated ones.
        judged: from :func:`judges`.

    Raises:
        DtrakError: what the setting needs of the truth is not built.
    """
    truth, asked = judged
    method = METHODS[setting.method]
    fixed = setting if method.damping is None or setting.damping else setting.with_(damping=method.damping)
    part = asked.groups.get(queries) or asked.groups["generated"]
    (scores,) = score_matrices(attributor, fixed, asked)
    return lds_with_interval(scores[part], truth.masks, truth.losses[:, part], resamples)


def _trak(attributor: Attributor, judged: tuple[SubsetTruth, QuerySet]) -> dict[str, "_Crossfit"]:
    """What others are compared with, by kind of query; empty where TRAK is not built."""
    truth, asked = judged
    try:
        every = score_matrices(attributor, Setting("trak"), asked)
    except DtrakError:
        return {}
    return {name: _crossfit(every, truth, part) for name, part in asked.groups.items()}


@dataclass(frozen=True)
class _Crossfit:
    """λ chosen on either half of the subset models, the LDS on the other; resamples are paired between settings."""

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
