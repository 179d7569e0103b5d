"""The LDS of methods and settings on a study's subset models, with what explains it.

Each LDS stands beside the simple explanations: the best baseline that sees images or labels alone, another query's
scores (the swap test), and the same LDS with the counts of labels and creators taken out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from dtrak.config import RANDOMISED
from dtrak.data import Table
from dtrak.evaluation.lds import Bootstrap, Estimate, Score, holm, lds, lds_with_interval, partial_lds, predicted
from dtrak.evaluation.results import POWERS, FamilyRow, Row
from dtrak.methods.attributor import Attributor
from dtrak.methods.choices import CHOICES, aligned, changed, measured, offer, stored
from dtrak.methods.query import QuerySet, load_query_set
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import FAMILIES, SubsetTruth
from dtrak.utils.errors import DtrakError

LEAST_MODELS = 4
HALF_RESAMPLES = 500
NOW_RESAMPLES = 200
ABLATED = ("dtrak", "trak")
SLOW = ("exact", "unlearning")  # computed on request, minutes for each query
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
    truth, asked = judges(attributor)
    chosen = all_settings(attributor) if settings is None else list(settings)
    trials = {name: Trial(attributor.table, truth, asked, part) for name, part in asked.groups.items()}
    reference = [Setting("trak")] + [Setting(m.name) for m in METHODS.values() if m.baseline]
    found: dict[str, dict[Setting, Result]] = {name: {} for name in trials}
    others: dict[Setting, dict[str, float]] = {}
    wanted = list(dict.fromkeys([*reference, *chosen]))
    for done, setting in enumerate(wanted):
        report(setting.title, done, len(wanted))
        generated_only = METHODS[setting.method].generated_only
        try:
            every = score_matrices(attributor, setting, asked)
        except DtrakError:
            if settings is not None and setting in settings:
                raise
            continue
        for name, trial in trials.items():
            if not (generated_only and name == "held-out"):
                found[name][setting] = trial.result(every)
        if METHODS[setting.method].knows_seed and truth.repeats is not None:
            (scores,), masks = every, truth.masks[list(truth.repeated)]
            by_query = lds(scores, masks, truth.repeats[1])
            others[setting] = {name: float(by_query[part].mean()) for name, part in asked.groups.items()}
    report("", len(wanted), len(wanted))
    features = {setting: _features(attributor, setting) for setting in wanted}
    rows = [row for name, results in found.items() for row in _rows(name, results, chosen, truth, features)]
    times = {s: seconds_a_query(attributor, s, asked) for s in wanted if s == Setting(s.method)}
    rows = [
        replace(row, seconds=times.get(setting), other_seed=others.get(setting, {}).get(row.queries))
        for row, setting in ((row, Setting.parse(row.setting)) for row in rows)
    ]
    return sorted(rows, key=lambda row: chosen.index(Setting.parse(row.setting)))


def seconds_a_query(attributor: Attributor, setting: Setting, asked: QuerySet) -> float | None:
    """The time from a generated image to its scores, features included; None where the setting cannot score it.

    Also None for methods whose answers are computed beforehand, such as those fitted to retrained models.
    """
    query = asked.queries[-1]
    if METHODS[setting.method].fitted or setting.method in SLOW:
        return None
    try:
        attributor.scores(setting, query, attributor.features(query, [setting], by_block=False))  # warm up
        start = time.perf_counter()
        attributor.scores(setting, query, attributor.features(query, [setting], by_block=False))
    except DtrakError:
        return None
    return round(time.perf_counter() - start, 5)


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
    if len(tried) < 2:
        return []
    found = aligned(attributor, tried)
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
    labels = attributor.table.labels_of([label or None for label in asked.labels[part]])
    return lds_with_interval(scores[part], truth.masks, truth.losses[:, part], resamples, labels)


def family_rows(attributor: Attributor, rows: Sequence[Row], asked: QuerySet) -> list[FamilyRow]:
    """The LDS of the methods' defaults on the families of subsets other than halves, as far as they are trained."""
    found = []
    for family in FAMILIES:
        try:
            truth = attributor.subsets(family)
        except DtrakError:
            continue
        if family in ("lds", "fit") or len(truth.masks) < LEAST_MODELS:
            continue
        for row in (row for row in rows if row.setting == row.method):
            setting, part = Setting(row.method, damping=row.chosen_damping), asked.groups[row.queries]
            (scores,) = score_matrices(attributor, setting, asked)
            labels = attributor.table.labels_of([label or None for label in asked.labels[part]])
            score = lds_with_interval(scores[part], truth.masks, truth.losses[:, part], HALF_RESAMPLES, labels)
            found.append(FamilyRow(row.method, row.queries, family, score.mean, (score.low, score.high), score.subsets))
    return found


class Trial:
    """Judges scores against the subset models, on one kind of query.

    λ is chosen on each half of the subset models and judged on the other; in each resample anew.

    Args:
        part: the rows of the queries.
    """

    def __init__(self, table: Table, truth: SubsetTruth, asked: QuerySet, part: slice):
        self.part, self.masks, self.losses = part, truth.masks, truth.losses[:, part]
        labels = table.labels_of([label or None for label in asked.labels[part]])
        self.swapped = _swapped(labels)
        self.groups = table.train_groups
        even = np.arange(len(self.masks)) % 2 == 0
        self._halves = even, ~even
        self._bootstraps = [Bootstrap(self.losses[h], labels, HALF_RESAMPLES, f"half {h[0]}") for h in self._halves]
        self._bootstraps[1].weights = self._bootstraps[0].weights  # the queries are the same

    def result(self, every: list[Scores]) -> "Result":
        """The LDS of one matrix of scores for each λ."""
        mine = [scores[self.part] for scores in every]
        means = [
            np.stack([b.means(b.table(predicted(scores, self.masks[half]))) for scores in mine])
            for b, half in zip(self._bootstraps, self._halves, strict=True)
        ]
        best = [int(m[:, 0].argmax()) for m in means]
        swap, partial = [], []
        for place, other in zip(best, reversed(self._halves), strict=True):
            masks, losses = self.masks[other], self.losses[other]
            partial.append(partial_lds(mine[place], masks, losses, self.groups).mean())
            known = self.swapped >= 0
            swap.append(lds(mine[place][self.swapped[known]], masks, losses[:, known]).mean() if known.any() else 0)
        return Result(
            self._crossfit(means, best),
            tuple(best),
            float(np.mean(swap)),
            float(np.mean(partial)),
            tuple(float(lds(scores, self.masks, self.losses).mean()) for scores in mine),
        )

    def _crossfit(self, means: list[Float[np.ndarray, "l places"]], best: list[int]) -> Estimate:
        models, shared = [int(half.sum()) for half in self._halves], 1 + 3 * HALF_RESAMPLES
        parts = [np.split(m, [shared, shared + count], axis=1) for m, count in zip(means, models, strict=True)]
        both = [np.concatenate([first, last], axis=1) for first, _, last in parts]  # but for leaving out a model
        chosen = [b.argmax(0) for b in both]
        columns = np.arange(both[0].shape[1])
        total = (both[1][chosen[0], columns] + both[0][chosen[1], columns]) / 2
        left_out = []
        for one, other in ((0, 1), (1, 0)):  # without a model of half ``one``
            without = parts[one][1]
            left_out.append((means[other][without.argmax(0), 0] + without[best[other]]) / 2)
        pieces = [total[:shared], *left_out, total[shared:]]
        return self._bootstraps[0].as_estimate(np.concatenate(pieces))


@dataclass(frozen=True)
class Result:
    """How one setting does on one kind of query.

    Attributes:
        estimate: the cross-fitted LDS.
        chosen: the λ chosen on each half, by place in the grid.
        swap: the cross-fitted LDS with the scores of another query of the same label.
        partial: the cross-fitted LDS with label and creator counts taken out.
        curve: the LDS on all models at each λ.
    """

    estimate: Estimate
    chosen: tuple[int, ...]
    swap: float
    partial: float
    curve: tuple[float, ...]


def _swapped(labels: Sequence[str]) -> Int[np.ndarray, " q"]:
    """For each query, the next one of the same label; −1 where there is none."""
    found = np.full(len(labels), -1)
    for label in dict.fromkeys(labels):
        rows = np.flatnonzero(np.array(labels) == label)
        if len(rows) > 1:
            found[rows] = np.roll(rows, 1)
    return found


def _features(attributor: Attributor, setting: Setting) -> str:
    """The features that a setting uses, in words."""
    try:
        sides = attributor.sides(setting)
    except DtrakError:
        return ""
    models = f", {len(sides)} models" if len(sides) > 1 else ""
    return f"K = {len(sides[0].pairs)}, k = {sides[0].dim:,}{models}" if sides else ""


def _rows(
    name: str,
    results: dict[Setting, Result],
    chosen: Sequence[Setting],
    truth: SubsetTruth,
    features: dict[Setting, str],
) -> list[Row]:
    known = {s: r for s, r in results.items() if METHODS[s.method].baseline and s == Setting(s.method)}
    best = max(known, key=lambda s: known[s].estimate.value, default=None)
    trak = results.get(Setting("trak"))
    rows = []
    for setting in chosen:
        if setting not in results:
            continue
        found = results[setting]
        over = None if best is None else found.estimate - results[best].estimate
        rows.append(
            Row(
                method=setting.method,
                setting=setting.text,
                queries=name,
                lds_crossfit=found.estimate.value,
                lds_oracle=max(found.curve),
                interval=found.estimate.interval,
                over_trak=_difference(None if trak is None else found.estimate - trak.estimate),
                over_baseline=_difference(over),
                baseline="" if best is None else best.method,
                p_value=None if over is None else over.p_value,
                features=features[setting],
                swap=found.swap,
                partial=found.partial,
                subset_models=len(truth.masks),
                seeds=truth.seeds,
                dampings=tuple(10.0 ** POWERS[i] for i in found.chosen) if len(found.curve) > 1 else (),
                curve=found.curve,
            )
        )
    return _adjusted(rows)


def _difference(estimate: Estimate | None) -> tuple[float, ...]:
    return () if estimate is None else (estimate.value, *estimate.interval)


def _adjusted(rows: list[Row]) -> list[Row]:
    """Holm's adjustment over the methods' own rows that are compared with the best baseline."""
    compared = [row for row in rows if row.setting == row.method and _is_compared(row)]
    adjusted = holm([row.p_value for row in compared if row.p_value is not None])
    known = {row.setting: p for row, p in zip(compared, adjusted, strict=True)}
    return [replace(row, p_value=known.get(row.setting)) for row in rows]


def _is_compared(row: Row) -> bool:
    method = METHODS[row.method]
    return row.p_value is not None and not (method.baseline or method.control or method.fitted)
