"""Exports of a ranking: CSV, JSON, and a self-contained HTML report."""

import csv
import functools
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from dtrak.analysis.evidence import Stability
from dtrak.analysis.significance import Verdict, standardise
from dtrak.app.components import component_file
from dtrak.app.elements import describe
from dtrak.app.views import format_score, significance
from dtrak.methods.ranking import Ranking, Scored, as_json
from dtrak.utils.images import data_url

FORMULA = re.compile(r"(^|[\n\r]\s*)(?=[=+\-@|\t\r＝＋－＠])")  # where a spreadsheet would begin to calculate
CSV_COLUMNS = ("rank", "id", "score", "z", "label", "caption", "creator", "licence", "in_top_of_resamples")


@functools.cache
def template(name: str) -> jinja2.Template:
    """An HTML template in ``components``; all values are escaped."""
    loader = jinja2.FunctionLoader(component_file)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(name)


def to_csv(ranking: Ranking, stability: Stability | None = None) -> bytes:
    """All training images in ranking order; only the first of merged near-duplicates."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(CSV_COLUMNS)
    z = standardise(ranking.scores)
    for rank, row in enumerate(ranking.order(), 1):
        record = ranking.table.records[row]
        share = "" if stability is None else f"{stability.share[row]:.3f}"
        words = [no_formula(v or "") for v in (record.label, record.caption, record.creator, record.licence)]
        writer.writerow([rank, no_formula(record.id), f"{ranking.scores[row]:.6g}", f"{z[row]:.3f}", *words, share])
    return buffer.getvalue().encode("utf-8-sig")  # the byte order mark makes spreadsheets read UTF-8


def to_json(
    study: str,
    query: dict[str, Any],
    ranking: Ranking,
    verdict: Verdict | None,
    stability: Stability | None,
    measured: str = "",
) -> bytes:
    """The command line's JSON, with all scores, the significance test and the stability.

    Args:
        query: its settings.
        measured: the measured reliability, in words.
    """
    records = ranking.table.records
    judged = None if verdict is None else verdict.as_dict(ranking.table.train_ids)
    content = as_json(study, query, ranking, measured, judged)
    scores = {record.id: float(f"{s:.6g}") for record, s in zip(records, ranking.scores, strict=False)}
    content["scores"] = scores
    if stability is not None:
        content["stability"] = {
            "resamples": stability.resamples,
            "share_in_top": dict(zip(scores, np.round(stability.share, 3).tolist(), strict=True)),
        }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def to_html(
    study: str,
    query: dict[str, Any],
    picture: Any,
    rankings: Sequence[Ranking],
    verdict: Verdict | None = None,
    stability: Stability | None = None,
    credit: str = "",
    measured: str = "",
) -> bytes:
    """A page with the query, its settings, and the top images of one or more methods; it loads nothing.

    Args:
        picture: the query's pixels, uint8, r × r × 3.
        rankings: the first is the main one; ``verdict``, ``stability`` and ``measured`` belong to it.
    """
    page = template("report.html").render(
        study=study,
        query=query,
        picture=data_url(picture, 192),
        verdict="" if verdict is None else significance(verdict).replace("**", ""),
        measured=measured,
        title=rankings[0].setting.title,
        credit=credit,
        sections=[_section(ranking, stability if ranking is rankings[0] else None) for ranking in rankings],
    )
    return page.encode()


def _section(ranking: Ranking, stability: Stability | None) -> dict[str, Any]:
    def entry(scored: Scored) -> dict[str, Any]:
        row, record = ranking.table.rows[scored.record.id], scored.record
        return {
            "picture": data_url(ranking.table.pixels[row], 64),
            "alt": describe(record),
            "score": format_score(scored.score),
            "words": [w for w in (record.caption, record.creator, record.licence, record.id) if w],
            "places": f"{stability.low[row]:.0f} to {stability.high[row]:.0f}" if stability else "",
        }

    sides = (("Proponents", ranking.proponents), ("Opponents", ranking.opponents))
    return {
        "title": ranking.setting.title,
        "formula": ranking.method.formula,
        "source": ranking.method.source,
        "fingerprint": ranking.fingerprint,
        "stable": stability is not None,
        "sides": [(name, [entry(s) for s in side]) for name, side in sides if side],
    }


def no_formula(text: str) -> str:
    """Text that spreadsheets do not run as a formula: a line that begins like one is quoted."""
    return FORMULA.sub(r"\1'", text)
