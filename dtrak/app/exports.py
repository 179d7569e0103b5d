"""Exports of an attribution: CSV, JSON, and one self-contained HTML page."""

import csv
import html
import io
import json
from typing import Any

import numpy as np

from dtrak.analysis.evidence import Null, Stability, clear_source, standardise
from dtrak.app.elements import data_url, describe
from dtrak.app.views import format_score
from dtrak.data import Table
from dtrak.methods.attributor import Attribution, as_json

CSV_COLUMNS = ("rank", "id", "score", "z", "label", "caption", "creator", "licence", "in_top_of_resamples")


def to_csv(answer: Attribution, table: Table, stability: Stability | None = None) -> bytes:
    """All training images, the strongest proponent first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(CSV_COLUMNS)
    z = standardise(answer.scores)
    for rank, row in enumerate(np.argsort(-answer.scores, kind="stable").tolist(), 1):
        record = table.records[row]
        share = "" if stability is None else f"{stability.share[row]:.3f}"
        words = [_no_formula(v or "") for v in (record.label, record.caption, record.creator, record.licence)]
        writer.writerow([rank, _no_formula(record.id), f"{answer.scores[row]:.6g}", f"{z[row]:.3f}", *words, share])
    return buffer.getvalue().encode("utf-8-sig")  # so that spreadsheets read names rightly


def to_json(
    study: str,
    query: dict[str, Any],
    answer: Attribution,
    table: Table,
    null: Null | None,
    stability: Stability | None,
    measured: str = "",
) -> bytes:
    """What the command line prints, with every score and what is known of chance and stability."""
    content = as_json(study, query, answer, measured)
    scores = {record.id: float(f"{s:.6g}") for record, s in zip(table.records, answer.scores, strict=False)}
    content["scores"] = scores
    if null is not None:
        content["chance"] = {
            "clear_source": clear_source(answer.scores, null),
            "top_z": round(float(standardise(answer.scores).max()), 3),
            "threshold_z": round(null.threshold, 3),
            "unrelated_queries": null.heldout + null.directions,
            "of_them_held_out_images": null.heldout,
        }
    if stability is not None:
        content["stability"] = {
            "resamples": stability.resamples,
            "share_in_top": dict(zip(scores, np.round(stability.share, 3).tolist(), strict=True)),
        }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: 4px 10px 4px 0; }
td { border-top: 1px solid #8a93a340; vertical-align: middle; }
img { image-rendering: pixelated; border-radius: 6px; background: #fff; } td img { width: 64px; height: 64px; }
.number { font-variant-numeric: tabular-nums; } dt { font-weight: 600; } dd { margin: 0 0 .5rem; }
"""


def to_html(
    study: str,
    query: dict[str, Any],
    picture: Any,
    answers: list[Attribution],
    table: Table,
    null: Null | None = None,
    stability: Stability | None = None,
    credit: str = "",
    measured: str = "",
) -> bytes:
    """One page with the query, its parameters, and the top images of one or more methods; nothing is loaded.

    Args:
        picture: the query's pixels.
        answers: the first is the main one; the null band, the stability and what was measured are of it.
    """
    out = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Attribution, {html.escape(study)}</title><style>{STYLE}</style>",
        f"<h1>Which training images shaped this one?</h1><p>Study {html.escape(study)}.</p>",
        f"<img src='{data_url(picture, 192)}' alt='The query' width='192'>",
        _facts(query),
    ]
    if null is not None:
        z = float(standardise(answers[0].scores).max())
        verdict = "stands above chance" if clear_source(answers[0].scores, null) else "no clear source"
        chance = f"random directions of equal norm stay below {null.threshold:.1f} in 95 % of cases"
        behind = f"{null.directions} directions, {null.heldout} held-out images"
        out.append(f"<p><b>{verdict}</b>: the top z-score is {z:.1f}; {chance} ({behind}).</p>")
    if measured:
        out.append(
            f"<p><b>Measured reliability</b> of {html.escape(answers[0].setting.title)}: {html.escape(measured)}</p>"
        )
    for number, answer in enumerate(answers):
        out.append(_section(answer, table, stability if number == 0 else None))
    out.append(
        "<p>A score says that removing images like this one should change the query most, according to the method. "
        f"It is no share of authorship and no proof.</p><p>{html.escape(credit)}</p></html>"
    )
    return "\n".join(out).encode()


def _section(answer: Attribution, table: Table, stability: Stability | None) -> str:
    parts = [
        f"<h2>{html.escape(answer.setting.title)}</h2><p>{html.escape(answer.method.formula)}<br>"
        f"{html.escape(answer.method.source)}. Fingerprint {answer.fingerprint}.</p>"
    ]
    for title, side in (("Proponents", answer.proponents), ("Opponents", answer.opponents)):
        if not side:
            continue
        head = "<th>places in 90 % of resamples</th>" if stability else ""
        parts.append(f"<h3>{title}</h3><table><tr><th></th><th></th><th>score</th><th>image</th>{head}</tr>")
        for place, scored in enumerate(side, 1):
            row = table.rows[scored.record.id]
            words = (scored.record.caption, scored.record.creator, scored.record.licence, scored.record.id)
            text = "<br>".join(html.escape(w) for w in words if w)
            interval = f"<td>{stability.low[row]:.0f} to {stability.high[row]:.0f}</td>" if stability else ""
            picture = (
                f"<img src='{data_url(table.pixels[row], 64)}' alt='{html.escape(describe(scored.record), True)}'>"
            )
            parts.append(
                f"<tr><td>{place}</td><td>{picture}</td><td class='number'>{format_score(scored.score)}</td>"
                f"<td>{text}</td>{interval}</tr>"
            )
        parts.append("</table>")
    return "\n".join(parts)


def _facts(query: dict[str, Any]) -> str:
    rows = "".join(f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in query.items())
    return f"<dl>{rows}</dl>"


def _no_formula(text: str) -> str:
    """Spreadsheets run cells that begin with =, +, - or @; a quote keeps them text."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text
