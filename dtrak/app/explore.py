"""View models of the Explore page: what colours the points of the map, and what a selection adds up to."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dtrak.analysis.evidence import hubs
from dtrak.analysis.map import Map
from dtrak.analysis.significance import HUB_PLACES, Null
from dtrak.data import Table
from dtrak.methods.ranking import Ranking, Scored
from dtrak.utils.text import percent

COLOURS = {
    "creator": "Creator", "label": "Class", "influence": "Influence on an image", "self-influence": "Self-influence",
    "hubness": "Hubness",
}  # fmt: skip


def colour_values(
    colour: str,
    table: Table,
    found: Map,
    scores: Float[np.ndarray, " m"] | None,
    extra: "Null | Float[np.ndarray, ' n'] | None",
) -> list[str] | list[float]:
    """A word or a number for each image on the map.

    Args:
        scores: of the images on the map for the current picture; for "influence".
        extra: self-influence of all training images, or the null distribution; for "self-influence" and "hubness".
    """
    rows = found.rows
    if colour == "influence" and scores is not None:
        return scores.tolist()
    if colour == "self-influence" and isinstance(extra, np.ndarray):
        return [float(extra[row]) for row in rows]
    if colour == "hubness" and isinstance(extra, Null):
        return hubs(extra, HUB_PLACES).share[rows].tolist()
    field = "label" if colour == "label" else "creator"
    names, codes = table.train_records.grouped(field)
    return [names[code] for code in codes[rows]]


def groups_of(table: Table) -> dict[str, list[int]]:
    """The training rows of each creator and each class, by a title; for listing without a pointer."""
    found: dict[str, list[int]] = {}
    for field, kind in (("creator", "Creator"), ("label", "Class")):
        names, codes = table.train_records.grouped(field)
        if len(names) > 1:
            found |= {f"{kind}: {name}": np.flatnonzero(codes == code).tolist() for code, name in enumerate(names)}
    return found


def listed(table: Table, rows: Sequence[int], answer: Ranking | None, most: int) -> list[Scored]:
    """At most ``most`` of the selected images: those with the highest scores, or the first where nothing is scored."""
    if answer is None:
        return [Scored(table.records[row], 0.0) for row in rows[:most]]
    chosen = np.sort(np.array(rows))
    scores = answer.scores_of(chosen)
    best = np.argsort(-scores, kind="stable")[:most]
    return [Scored(table.records[int(chosen[i])], float(scores[i])) for i in best]


def group_text(table: Table, rows: Sequence[int], answer: Ranking | None) -> str:
    """How many images are selected, of whom, and what they hold of a picture's positive scores."""
    names, codes = table.train_records.grouped("creator")
    of = Counter(names[code] for code in codes[list(rows)]).most_common(3)
    whose = ", ".join(f"{name} {count}" for name, count in of)
    text = f"{len(rows)} image{'s' if len(rows) > 1 else ''} ({whose})."
    if answer is None:
        return text
    held = float(answer.scores_of(np.array(rows)).clip(min=0).sum())
    share = min(held / answer.positive, 1.0) if answer.positive > 0 else 0.0
    expected = len(rows) / table.train_size
    holds = f"{percent(share)} of the positive scores by {answer.method.title}"
    return f"{text} They hold {holds}, and are {percent(expected)} of the images."
