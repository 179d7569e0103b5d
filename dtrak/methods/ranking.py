"""A ranking: the training images by their scores for one query.

One object is what the gallery, the histogram, the exports, the command line and Python show. What changes the order
(subtracting hubs, merging near-duplicates) gives a new ranking, so that all of them change together.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from dtrak.data import Record, Table
from dtrak.methods.base import Method
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.images import data_url

if TYPE_CHECKING:
    import pandas as pd

Unit = Literal["score", "z-score"]


@dataclass(frozen=True)
class Scored:
    """A training sample and its score."""

    record: Record
    score: float


def top_scored(
    scores: Float[np.ndarray, " n"],
    table: Table,
    count: int,
    sign: int = 1,
    groups: Int[np.ndarray, " n"] | None = None,
    rows: Sequence[int] | None = None,
) -> list[Scored]:
    """The first ``count`` samples by ``sign · score``, those of the sign only; ties in row order.

    Args:
        groups: group of each row; of each group only its first sample is taken.
        rows: where to look; default all rows.
    """
    if rows is None:
        rows = np.argsort(-sign * scores, kind="stable").tolist()
    found: list[Scored] = []
    seen: set[int] = set()
    for row in rows:
        if sign * scores[row] <= 0 or len(found) == count:
            break
        if groups is None or int(groups[row]) not in seen:
            found.append(Scored(table.records[row], float(scores[row])))
            seen.add(row if groups is None else int(groups[row]))
    return found


@dataclass(frozen=True)
class Ranking:
    """The answer to one query.

    Attributes:
        setting: how it was scored.
        damping: the λ that was used, of the first model where there are several; None without a kernel.
        fingerprint: of the feature sets it was computed from.
        table: of the study; training rows first.
        scores: of every training sample, in row order.
        top: how many proponents and opponents are listed at most.
        unit: of the scores: the method's own, or standard deviations once hubs are damped.
        groups: group of each training row, where near-duplicates are merged; each counts once.
        ends: rows that a search of the index found at both ends; default all rows are looked at.
    """

    setting: Setting
    damping: float | None
    fingerprint: str
    table: Table
    scores: Float[np.ndarray, " n"]
    top: int = 10
    unit: Unit = "score"
    groups: Int[np.ndarray, " n"] | None = None
    ends: tuple[Int[np.ndarray, " top"], Int[np.ndarray, " top"]] | None = None

    @property
    def method(self) -> Method:
        """The setting's method."""
        return METHODS[self.setting.method]

    @cached_property
    def proponents(self) -> list[Scored]:
        """Highest scores, descending; only positive ones."""
        return self._side(0)

    @cached_property
    def opponents(self) -> list[Scored]:
        """Lowest scores, ascending; only negative ones."""
        return self._side(1)

    def merged(self, groups: Int[np.ndarray, " n"] | None) -> "Ranking":
        """The same with near-duplicates listed once; None leaves it as it is."""
        return self if groups is None else replace(self, groups=groups, ends=None)

    def rescored(self, scores: Float[np.ndarray, " n"], unit: Unit) -> "Ranking":
        """The same samples by other scores."""
        return replace(self, scores=scores, unit=unit, ends=None)

    def order(self) -> list[int]:
        """Training rows from the strongest proponent to the strongest opponent; of each group the first alone."""
        rows = np.argsort(-self.scores, kind="stable").tolist()
        if self.groups is None:
            return rows
        first: dict[int, int] = {}
        for row in rows:
            first.setdefault(int(self.groups[row]), row)
        return list(first.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON carries it; scores to six significant digits."""
        return {
            "method": self.method.name,
            "setting": self.setting.text,
            "damping": self.damping,
            "fingerprint": self.fingerprint,
            **({} if self.unit == "score" else {"unit": self.unit}),
            "proponents": [_entry(s) for s in self.proponents],
            "opponents": [_entry(s) for s in self.opponents],
        }

    def to_pandas(self) -> "pd.DataFrame":
        """One row a training sample, strongest proponent first: rank, id, score, label, caption, creator, licence."""
        import pandas as pd

        rows = self.order()
        records = [self.table.records[row] for row in rows]
        columns: dict[str, Any] = {"rank": range(1, len(rows) + 1), "id": [r.id for r in records]}
        columns["score"] = self.scores[rows]
        for name in ("label", "caption", "creator", "licence"):
            columns[name] = [getattr(r, name) for r in records]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        listed = ", ".join(f"{s.record.id} {s.score:+.3g}" for s in self.proponents[:3])
        return f"<Ranking by {self.setting.title} of {len(self.scores)} training images: {listed}, …>"

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.setting.title)}, {len(self.scores)} training images</p>"]
        for title, side in (("Proponents", self.proponents), ("Opponents", self.opponents)):
            pictures = "".join(
                f"<figure style='display:inline-block;margin:4px;width:96px'>"
                f"<img src='{data_url(self.table.pixels[self.table.rows[s.record.id]], 96)}' width='96' "
                f"alt='{html.escape(s.record.caption or s.record.id, True)}'>"
                f"<figcaption style='font-size:11px'>{s.score:+.3g}<br>{html.escape(s.record.caption or s.record.id)}"
                "</figcaption></figure>"
                for s in side
            )
            if side:
                parts.append(f"<b>{title}</b><div>{pictures}</div>")
        return "".join(parts)

    def _side(self, end: int) -> list[Scored]:
        sign = 1 - 2 * end
        rows = None
        if self.ends is not None:
            rows = sorted(self.ends[end].tolist(), key=lambda row: (-sign * self.scores[row], row))
        return top_scored(self.scores, self.table, self.top, sign, self.groups, rows)


def _entry(scored: Scored) -> dict[str, Any]:
    record = scored.record
    return {
        "id": record.id,
        "score": float(f"{scored.score:.6g}"),
        "label": record.label,
        "caption": record.caption,
        "creator": record.creator,
        "licence": record.licence,
    }


def as_json(study: str, query: dict[str, Any], ranking: Ranking, measured: str = "") -> dict[str, Any]:
    """A ranking with the study and the query that it belongs to.

    Args:
        measured: the setting's measured reliability, in words.
    """
    content = ranking.as_dict()
    sides = {side: content.pop(side) for side in ("proponents", "opponents")}
    return {"study": study, "query": query, **content, "measured": measured, **sides}
