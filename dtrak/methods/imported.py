"""Scores of another tool, imported by ``dtrak import-scores``, so that they can be shown and judged like the others."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dtrak.methods.base import Features, Method, Scores
from dtrak.utils.errors import DtrakError
from dtrak.utils.files import digest, write_npy

if TYPE_CHECKING:
    from dtrak.methods.attributor import Attributor
    from dtrak.methods.query import Query
    from dtrak.methods.settings import Setting
    from dtrak.methods.training_side import TrainingSide
    from dtrak.study.folder import StudyFolder

VALUES = ("score", "share")  # the column or key that holds the number


@dataclass(frozen=True, kw_only=True)
class ImportedMethod(Method):
    """Reads scores that another tool computed."""

    needs: str = "scores of another tool (dtrak import-scores)"
    tested: ClassVar[bool] = False
    light: ClassVar[bool] = False

    def require(self, study: TrainingSide) -> None:
        """See :class:`Method`."""
        if not any(folder_of(study.folder).glob("*.npy")):
            raise DtrakError(
                "No scores of another tool were imported.",
                hint=f"python -m index_builder import-scores {study.folder.study.name} FILE",
            )

    def scores(
        self, study: Attributor, setting: Setting, query: Query, features: Features
    ) -> tuple[Scores, float | None]:
        """See :class:`Method`."""
        path = folder_of(study.folder) / f"{digest(query.id)}.npy"
        if not path.exists():
            raise DtrakError("No scores of another tool were imported for this image.", hint="Choose another method.")
        return np.load(path).astype(np.float64), None


def folder_of(folder: StudyFolder) -> Path:
    """The folder of the imported scores for the present training images."""
    return folder.root / "imported" / folder.table.fingerprint()


def import_scores(folder: StudyFolder, content: str, query_of: Callable[[str], str | None]) -> tuple[int, int]:
    """Store scores; returns how many images they are for, and how many rows were left out.

    Args:
        content: JSON with a list "rows", or CSV; each row has "output", "work" and "score" or "share". A ledger is such
            a file; its rows "unattributed" are left out.
        query_of: from the id of an image to that of its query; None for unknown ones.

    Raises:
        DtrakError: the content has another form, or no row fits.
    """
    table = folder.table
    found: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(table.train_size))
    left_out = 0
    rows = _rows(content)
    places = table.records.places([str(row["work"]) for row in rows])
    for row, place in zip(rows, places, strict=True):
        output = str(row["output"])
        query = query_of(output)
        if query is None or not 0 <= place < table.train_size:
            left_out += 1
            continue
        found[output, query][place] += row["value"]
    if not found:
        raise DtrakError(
            "No row is about an image and a training image of this study.",
            hint="'output' must be the id of a saved image, 'work' that of a training image.",
        )
    by_query = {query: scores for (_, query), scores in found.items()}  # of equal images, the last one counts
    for query, scores in by_query.items():
        write_npy(folder_of(folder) / f"{digest(query)}.npy", scores)
    return len(by_query), left_out


def _rows(content: str) -> list[dict[str, Any]]:
    try:
        content = content.lstrip("\ufeff")
        if content.lstrip().startswith(("{", "[")):
            told = json.loads(content)
            rows = told["rows"] if isinstance(told, dict) else told
        else:
            rows = list(csv.DictReader(io.StringIO(content)))
        found = []
        for row in rows:
            value = float(next(row[name] for name in VALUES if row.get(name) not in (None, "")))
            if not np.isfinite(value):
                raise ValueError(f"{value} is no score")
            found.append({"output": row["output"], "work": row["work"], "value": value})
    except (ValueError, KeyError, TypeError, StopIteration, AttributeError, csv.Error) as error:
        raise DtrakError(
            f"These are no scores: {error!r}",
            hint="Give JSON with a list 'rows', or CSV, with 'output', 'work' and 'score' or 'share' in each row.",
        ) from error
    return found


METHODS: tuple[Method, ...] = (
    ImportedMethod(name="imported", title="Imported", formula="τ(x, n) as another tool computed it", source="a file"),
)
