"""View models: what a page shows, worked out without the page."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dtrak.analysis.comparison import ranks
from dtrak.analysis.evidence import STABLE, Hubs, Stability
from dtrak.app.elements import describe
from dtrak.data import Record, Table
from dtrak.methods.ranking import Ranking, Scored
from dtrak.utils.images import data_url
from dtrak.utils.text import percent

Badge = tuple[str, str, str]  # text, kind ("", "up" or "down"), and what it means


def tiles(
    scored: list[Scored],
    table: Table,
    badges: Mapping[str, list[Badge]] | None = None,
    faded: Collection[str] = (),
) -> list[dict[str, Any]]:
    """What the gallery draws: one entry a training image, strongest first.

    Args:
        badges: by training image.
        faded: images whose place is not stable.
    """
    strongest = max((abs(s.score) for s in scored), default=1.0)
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


def change_badges(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], table: Table, count: int
) -> dict[str, list[Badge]]:
    """How far each of the first ``count`` images moved against an earlier ranking."""
    old, new = ranks(before), ranks(after)
    found: dict[str, list[Badge]] = {}
    for row in np.flatnonzero(new < count).tolist():
        moved = int(old[row] - new[row])
        if moved:
            word = f"{'▲' if moved > 0 else '▼'} {abs(moved)}"
            help_text = f"was place {old[row] + 1} under the previous setting"
            found[table.records[row].id] = [(word, "up" if moved > 0 else "down", help_text)]
    return found


def evidence_badges(
    table: Table,
    stability: Stability | None = None,
    hubs: Hubs | None = None,
    groups: Int[np.ndarray, " n"] | None = None,
) -> dict[str, list[Badge]]:
    """What is known of each training image's place: stability, hubness, how many near-duplicates it stands for."""
    found: dict[str, list[Badge]] = defaultdict(list)

    def add(rows: Bool[np.ndarray, " n"], badge: Callable[[int], Badge]) -> None:
        for row in np.flatnonzero(rows).tolist():
            found[table.records[row].id].append(badge(row))

    if stability is not None:
        add(
            stability.share > 0,
            lambda row: (
                percent(stability.share[row]),
                "",
                f"in the top in {percent(stability.share[row])} of {stability.resamples} resamples; places "
                f"{stability.low[row]:.0f} to {stability.high[row]:.0f}",
            ),
        )
    if hubs is not None:
        add(hubs.marked, lambda row: ("hub", "down", f"in the top of {percent(hubs.share[row])} of unrelated lists"))
    if groups is not None:
        counts = np.bincount(groups)[groups]
        add(counts > 1, lambda row: (f"×{counts[row]}", "", "this many training images look nearly the same"))
    return found


def unstable(table: Table, stability: Stability) -> set[str]:
    """Images in the top in fewer than half of the resamples."""
    return {table.records[row].id for row in np.flatnonzero(stability.share < STABLE).tolist()}


def format_score(score: float) -> str:
    """Three significant digits, always signed, with a real minus."""
    return f"{score:+.3g}".replace("-", "−")


@dataclass(frozen=True)
class Share:
    """A group's part of the positive mass.

    Attributes:
        share: of the sum of all positive scores.
        expected: the group's share of the training set.
    """

    name: str
    share: float
    expected: float
    count: int


def shares(records: list[Record], scores: Float[np.ndarray, " n"], key: str) -> list[Share]:
    """Positive mass by creator or label, largest first; sums to 1 where any score is positive."""
    mass: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for record, score in zip(records, scores, strict=True):
        name = getattr(record, key) or "unknown"
        mass[name] += max(float(score), 0.0)
        counts[name] += 1
    total = sum(mass.values()) or 1.0
    found = [Share(name, mass[name] / total, counts[name] / len(records), counts[name]) for name in mass]
    return sorted(found, key=lambda s: (-s.share, s.name))


def effective_number(scores: Float[np.ndarray, " n"]) -> float:
    """How many equal contributors the positive mass amounts to: exp of its entropy."""
    positive = scores[scores > 0]
    if not positive.size:
        return 0.0
    share = positive / positive.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def z_score(ranking: Ranking) -> float:
    """How many standard deviations of all scores the top proponent lies above their mean."""
    spread = float(ranking.scores.std()) or 1.0
    return (float(ranking.scores.max()) - float(ranking.scores.mean())) / spread


def default_power(damping: float) -> float:
    """A damping as a power of ten, to the quarter that the slider steps by."""
    return round(float(np.log10(damping)) * 4) / 4
