"""A ranking: the training images ordered by score for one query.

The gallery, the histogram, the exports, the command line and Python all show the same object. Operations that
change the order (subtracting hubs, merging near-duplicates) return a new ranking, so that all views stay consistent.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from dtrak.data import Record, Table
from dtrak.methods.base import Method, Search
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
    """The top ``count`` samples by ``sign · score``, where that is positive; ties in row order.

    Args:
        sign: 1 for proponents, −1 for opponents.
        groups: group of each row; only the first sample of each group is listed.
        rows: candidate rows, already ordered; default all rows.
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
    """The ranking of the training images for one query.

    Attributes:
        setting: the method and its choices.
        damping: the λ used, of the first model if there are several; None without a kernel.
        fingerprint: of the feature sets it was computed from.
        table: the study's table, training rows first.
        given: score of every training sample, in row order, or what computes them.
        top: maximum number of listed proponents and of opponents.
        unit: unit of the scores: the method's own, or standard deviations ("z-score") after subtracting hubs.
        groups: group of each training row if near-duplicates are merged; each group is listed once.
        search: both ends as an index found them; None to sort all rows.
        rows: the only rows that may be listed; None for all.
    """

    setting: Setting
    damping: float | None
    fingerprint: str
    table: Table
    given: Float[np.ndarray, " n"] | Callable[[], Float[np.ndarray, " n"]]
    top: int = 10
    unit: Unit = "score"
    groups: Int[np.ndarray, " n"] | None = None
    search: Search | None = None
    rows: Int[np.ndarray, " some"] | None = None

    @property
    def method(self) -> Method:
        """The setting's method."""
        return METHODS[self.setting.method]

    @cached_property
    def scores(self) -> Float[np.ndarray, " n"]:
        """The score of every training sample, in row order; a pass over all of them if an index found the ends."""
        return self.given() if callable(self.given) else self.given

    @property
    def large(self) -> bool:
        """Whether :attr:`scores` take long, so that a page asks for :attr:`sample` instead."""
        return self.search is not None and self.search.large

    @cached_property
    def sample(self) -> Float[np.ndarray, " some"]:
        """The scores of a fixed random sample of the training samples where all take long; else all."""
        return self.search.sample() if self.search is not None and self.large else self.scores

    @cached_property
    def positive(self) -> float:
        """The sum of all positive scores, estimated from :attr:`sample` where all take long."""
        return float(self.sample.clip(min=0).mean() * self.table.train_size)

    def scores_of(self, rows: Int[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
        """The scores of some training rows."""
        if self.search is not None and self.large:
            return self.search.index.of_rows(self.search.q, rows)
        return self.scores[rows]

    def listing(self, top: int) -> list[Scored]:
        """The first ``top`` proponents, at most as many as were searched for."""
        return replace(self, top=top).proponents

    def score_and_place(self, row: int) -> tuple[float, int]:
        """The score of a training row and its place from 1; a search that listed it knows both."""
        if self.search is not None:
            for end, (rows, scores) in enumerate(zip(self.search.rows, self.search.scores, strict=True)):
                if row in rows:
                    place = int(np.flatnonzero(rows == row)[0])
                    return float(scores[place]), self.table.train_size - place if end else place + 1
        score = self.scores[row]
        return float(score), 1 + int((self.scores > score).sum() + (self.scores[:row] == score).sum())

    @cached_property
    def proponents(self) -> list[Scored]:
        """Highest scores, descending; only positive ones."""
        return self._side(0)

    @cached_property
    def opponents(self) -> list[Scored]:
        """Lowest scores, ascending; only negative ones."""
        return self._side(1)

    def merged(self, groups: Int[np.ndarray, " n"] | None) -> "Ranking":
        """The ranking with near-duplicates merged; unchanged for None."""
        return self if groups is None else replace(self, given=self.scores, groups=groups, search=None)

    def rescored(self, scores: Float[np.ndarray, " n"], unit: Unit) -> "Ranking":
        """The same samples ranked by other scores."""
        return replace(self, given=scores, unit=unit, search=None)

    def within(self, low: float, high: float) -> "Ranking":
        """The same ranking, listing only samples with scores from ``low`` to ``high``."""
        rows = np.flatnonzero((self.scores >= low) & (self.scores <= high))
        return replace(self, given=self.scores, rows=rows)

    def order(self) -> list[int]:
        """Training rows by descending score; only the first row of each group."""
        rows = np.argsort(-self.scores, kind="stable").tolist()
        if self.groups is None:
            return rows
        first: dict[int, int] = {}
        for row in rows:
            first.setdefault(int(self.groups[row]), row)
        return list(first.values())

    def as_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data; scores rounded to six significant digits."""
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
        """One row per training sample by descending score: rank, id, score, label, caption, creator, licence."""
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
        return f"<Ranking by {self.setting.title} of {self.table.train_size} training images: {listed}, …>"

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.setting.title)}, {self.table.train_size} training images</p>"]
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
        if self.rows is not None:
            rows = sorted(self.rows.tolist(), key=lambda row: (-sign * self.scores[row], row))
            return top_scored(self.scores, self.table, self.top, sign, self.groups, rows)
        if self.search is None:
            return top_scored(self.scores, self.table, self.top, sign, self.groups)
        found = zip(self.search.rows[end].tolist(), self.search.scores[end].tolist(), strict=True)
        return [Scored(self.table.records[row], score) for row, score in found if sign * score > 0][: self.top]


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


def as_json(
    study: str,
    query: dict[str, Any],
    ranking: Ranking,
    measured: str = "",
    verdict: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A ranking with its study and query, as JSON-serialisable data.

    Args:
        query: description of the query.
        measured: the setting's measured reliability, as a sentence.
        verdict: the outcome of the significance test; None if there is none.
    """
    content = ranking.as_dict()
    sides = {side: content.pop(side) for side in ("proponents", "opponents")}
    return {"study": study, "query": query, **content, "verdict": verdict, "measured": measured, **sides}
