"""Downloads on the Attribution page: the ranking as CSV, JSON and HTML, and the code that computes it."""

from functools import partial

import streamlit as st

from dtrak.analysis.evidence import Stability
from dtrak.analysis.significance import Verdict
from dtrak.app.code import as_command, as_python
from dtrak.app.exports import to_csv, to_html, to_json
from dtrak.app.runs import Run
from dtrak.app.service import StudyService
from dtrak.methods.ranking import Ranking


def downloads_section(
    service: StudyService, run: Run, answer: Ranking, verdict: Verdict | None, stable: Stability | None
) -> None:
    """The download buttons; each file is made when its button is pressed."""
    described = run.settings.as_dict() if run.settings else {"image": "uploaded", "label": run.label}
    if run.region is not None:
        described |= {"region": run.region.text}
    setting, study = answer.setting, service.folder.study
    name = f"{run.id}-{setting.text}"
    credit, measured = study.data.credit or "", service.reliability(setting, run).text
    title = study.title or study.name
    files = {
        "csv": ("Download CSV", "text/csv", partial(to_csv, answer, stable)),
        "json": ("Download JSON", "application/json",
                 partial(to_json, study.name, described, answer, verdict, stable, measured)),
        "html": ("Download report (HTML)", "text/html",
                 partial(to_html, title, described, run.pixels, [answer], verdict, stable, credit, measured)),
    }  # fmt: skip
    for column, (suffix, (label, mime, make)) in zip(st.columns(3), files.items(), strict=True):
        column.download_button(
            label, make, f"{name}.{suffix}", mime, on_click="ignore", key=f"export-{suffix}", width="stretch"
        )
    st.markdown("The same answer in Python, and in a terminal:")
    st.code(as_python(study.name, run, setting, answer.top), language="python")
    st.code(as_command(study.name, run, setting, answer.top), language="sh", wrap_lines=True)
