"""View models: what pages show, computed without Streamlit."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dtrak.analysis.comparison import Ranked
from dtrak.analysis.evidence import STABLE, Hubs, Split, Stability
from dtrak.analysis.significance import Verdict
from dtrak.app.elements import describe
from dtrak.data import Records, Table
from dtrak.methods.ranking import Scored
from dtrak.utils.images import data_url
from dtrak.utils.text import percent

Badge = tuple[str, str, str]  # text, kind ("", "up" or "down"), tooltip


def tiles(
    scored: list[Scored],
    table: Table,
    badges: Mapping[str, list[Badge]] | None = None,
    faded: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The gallery's tiles, one per training image, strongest first.

    Args:
        badges: by id of the training image.
        faded: ids of images whose rank is not stable.
    """
    strongest = max((abs(s.score) for s in scored), default=0.0) or 1.0
    return [
        {
            "id": s.record.id,
            "place": place,
            "src": data_url(table.pixels[table.rows[s.record.id]]),
            "alt": describe(s.record),
            "score": format_score(s.score),
            "share": abs(s.score) / strongest,
            "sign": "+" if s.score > 0 else "−",
            "caption": s.record.caption or s.record.id,
            "creator": s.record.creator or "unknown creator",
            "licence": s.record.licence,
            "badges": (badges or {}).get(s.record.id, []),
            "faded": s.record.id in faded,
        }
        for place, s in enumerate(scored, 1)
    ]


def change_badges(before: Ranked, after: Ranked, table: Table, count: int) -> dict[str, list[Badge]]:
    """Rank changes of the first ``count`` images against an earlier ranking, by id."""
    rows = after.first[:count]
    found: dict[str, list[Badge]] = {}
    for new, (row, old) in enumerate(zip(rows.tolist(), before.places(rows).tolist(), strict=True)):
        if moved := old - new:
            word = f"{'▲' if moved > 0 else '▼'} {abs(moved)}"
            help_text = f"rank {before.place_text(old + 1)} under the previous setting"
            found[table.records[row].id] = [(word, "up" if moved > 0 else "down", help_text)]
    return found


def evidence_badges(
    table: Table,
    stability: Stability | None = None,
    hubs: Hubs | None = None,
    groups: Int[np.ndarray, " n"] | None = None,
    verdict: Verdict | None = None,
) -> dict[str, list[Badge]]:
    """Badges for significance, stability, hubs and near-duplicates, by id of the training image.

    Args:
        groups: near-duplicate group of each training image.
    """
    found: dict[str, list[Badge]] = defaultdict(list)

    def add(rows: Bool[np.ndarray, " n"], badge: Callable[[int], Badge]) -> None:
        for row in np.flatnonzero(rows).tolist():
            found[table.train_ids[row]].append(badge(row))

    if verdict is not None:
        p_values = verdict.p_values
        add(verdict.named, lambda row: ("source", "up", f"significant: p = {p_values[row]:.2g}, 5 % family-wise"))
    if stability is not None:
        add(
            (stability.share < STABLE) & (stability.share > 0),
            lambda row: ("unstable", "down", f"in the top {stability.top} in fewer than half of the resamples"),
        )
        add(
            stability.share > 0,
            lambda row: (
                percent(stability.share[row]),
                "",
                f"in the top {stability.top} in {percent(stability.share[row])} of {stability.resamples} resamples; "
                f"ranks {stability.low[row]:.0f} to {stability.high[row]:.0f}",
            ),
        )
    if hubs is not None:
        add(hubs.marked, lambda row: ("hub", "down", f"in the top of {percent(hubs.share[row])} of unrelated rankings"))
    if groups is not None:
        counts = np.bincount(groups)[groups]
        add(counts > 1, lambda row: (f"×{counts[row]}", "", "this many training images look nearly the same"))
    return found


def unstable(scored: Sequence[Scored], table: Table, stability: Stability) -> set[str]:
    """Ids of those of some ranked images that are in the top in fewer than half of the resamples."""
    return {s.record.id for s in scored if stability.share[table.rows[s.record.id]] < STABLE}


def stable_count(scored: Sequence[Scored], table: Table, stability: Stability) -> int:
    """How many of some ranked images are in the top in at least half of the resamples."""
    return len(scored) - len(unstable(scored, table, stability))


def significance(verdict: Verdict) -> str:
    """The outcome of the significance test, in words."""
    against = f"Compared with {verdict.null_size} unrelated images: {verdict.null}."
    images, p = int(verdict.named.sum()), f"{verdict.p_value:.2g}"
    if not images:
        return f"**No clear source** (p = {p}). Treat the ranking as weak evidence at most. {against}"
    plural = "s" if images > 1 else ""
    return f"**{images} significant source{plural}** (5 % family-wise; smallest p = {p}). {against}"


def timestep_band(split: Split, first: int, last: int) -> tuple[list[str], Float[np.ndarray, " n"]]:
    """The parts of the scores from timesteps ``first`` to ``last``, both included: their names and their sum."""
    chosen = [i for i, t in enumerate(split.timesteps) if first <= t <= last]
    return [split.names[i] for i in chosen], split.scores[chosen].sum(0)


def between(state: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The range of scores boxed in a figure, from the state of its widget; None without a box."""
    boxes = (state or {}).get("selection", {}).get("box", [])
    return (min(boxes[0]["x"]), max(boxes[0]["x"])) if boxes else None


def format_score(score: float) -> str:
    """Three significant digits, always signed, with a typographic minus."""
    return f"{score:+.3g}".replace("-", "−")


@dataclass(frozen=True)
class Share:
    """A group's share of the positive mass.

    Attributes:
        share: of the sum of all positive scores.
        expected: the group's share of the training images.
        count: number of its training images.
    """

    name: str
    share: float
    expected: float
    count: int


def shares(records: Records, scores: Float[np.ndarray, " n"], key: str) -> list[Share]:
    """Shares of the positive mass by creator or label, largest first; they sum to 1 if any score is positive.

    Args:
        records: of the training images.
        key: "creator" or "label".
    """
    names, codes = records.grouped(key)
    counts = np.bincount(codes, minlength=len(names))
    mass = np.bincount(codes, np.maximum(scores, 0.0), len(names))
    mass = mass / (mass.sum() or 1.0)
    found = [
        Share(name, float(share), int(count) / len(records), int(count))
        for name, share, count in zip(names, mass, counts, strict=True)
    ]
    return sorted(found, key=lambda s: (-s.share, s.name))


def effective_number(scores: Float[np.ndarray, " n"]) -> float:
    """The effective number of contributors: exp of the entropy of the positive scores; 0 if there are none."""
    positive = scores[scores > 0]
    if not positive.size:
        return 0.0
    share = positive / positive.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


POWER_STEPS = tuple(step / 4 for step in range(-16, 17))  # log₁₀ λ of sliders


def damping_text(power: float) -> str:
    """λ = 10^power to three significant digits."""
    return f"{10**power:.3g}"


def default_power(damping: float) -> float:
    """log₁₀ λ, rounded to a multiple of 0.25."""
    return round(float(np.log10(damping)) * 4) / 4
