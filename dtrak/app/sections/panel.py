"""The panel beside the gallery: one training image large, with all that is known about its influence."""

import streamlit as st

from dtrak.analysis.comparison import ranks
from dtrak.analysis.evidence import split_by_timestep
from dtrak.analysis.significance import Verdict
from dtrak.app.elements import describe, plain
from dtrak.app.figures import part_bars
from dtrak.app.runs import Run
from dtrak.app.service import StudyService
from dtrak.app.views import format_score
from dtrak.app.widgets import open_sample, pinned, toggle_pin
from dtrak.methods.ranking import Ranking
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url

OTHERS = 4


def sample_panel(service: StudyService, run: Run, answer: Ranking, verdict: Verdict | None, sample_id: str) -> None:
    """One training image of a ranking."""
    table = service.attributor.table
    row = table.rows[sample_id]
    record = table.records[row]
    with st.container(border=True, key="panel"):
        st.image(data_url(table.pixels[row], 256), width="stretch", alt=describe(record))
        st.markdown(f"**{plain(record.caption or record.id)}**")
        by = " · ".join(plain(part) for part in (record.label, record.creator, record.licence) if part)
        score, place = answer.score_and_place(row)
        p_value = "" if verdict is None else f", p = {verdict.p_values[row]:.2g}"
        st.markdown(f"{by}  \nScore {format_score(score)}, rank {place:,} of {table.train_size:,}{p_value}")
        if (exact := service.retraining.exact(run)) is not None:
            st.caption(f"Exact influence {format_score(exact[0][row])}, rank {int(ranks(exact[0])[row]) + 1}.")
        _by_timestep(service, run, answer, row)
        _others(service, run, answer, sample_id)
        with st.container(horizontal=True):
            st.button("Unpin" if sample_id in pinned() else "Pin", key="panel-pin", on_click=toggle_pin,
                      args=(sample_id,), help="Pinned images can be removed together under What if.")  # fmt: skip
            if st.button("Open its page", key="panel-open"):
                open_sample(sample_id)
            if st.button("Close", key="panel-close", help="Or press Esc in the gallery."):
                del st.query_params["sample"]
                st.rerun()


def _by_timestep(service: StudyService, run: Run, answer: Ranking, row: int) -> None:
    try:
        split = service.answer(run, answer.setting, split_by_timestep, (row,))
    except DtrakError:
        return
    st.plotly_chart(part_bars(split.timesteps, split.scores[:, 0].tolist()), key="panel-timesteps",
                    alt="The parts of this image's score by timestep")  # fmt: skip


def _others(service: StudyService, run: Run, answer: Ranking, sample_id: str) -> None:
    if not answer.method.uses_features:
        return
    found = [item for item in service.reverse(sample_id, answer.setting, OTHERS + 1) if item[0].id != run.id][:OTHERS]
    if found:
        st.caption("Other images it influences")
        for column, (other, z, place) in zip(st.columns(OTHERS), found, strict=False):
            column.image(data_url(other.pixels, 64), width="stretch", alt=other.title)
            column.caption(f"rank {place}", help=f"z = {z:+.1f} in that ranking")
