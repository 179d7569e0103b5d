"""Evidence on the Attribution page: the parts of the scores by timestep and by block, stability and hubs."""

from collections.abc import Sequence

import streamlit as st

from dtrak.analysis.evidence import HUB_FACTOR, Hubs, Split, Stability, split_by_block, split_by_timestep
from dtrak.app.elements import explain
from dtrak.app.figures import split_bars
from dtrak.app.runs import Run
from dtrak.app.service import StudyService
from dtrak.app.views import stable_count, tiles, timestep_band
from dtrak.app.widgets import gallery
from dtrak.data import Table
from dtrak.methods.ranking import Ranking, Scored, top_scored
from dtrak.utils.errors import DtrakError
from dtrak.utils.text import percent

SHOWN = 6


def evidence_section(service: StudyService, run: Run, answer: Ranking, stable: Stability | None, hub: Hubs | None,
                     pending: bool) -> None:  # fmt: skip
    """The evidence for a ranking, by kind.

    Args:
        pending: whether stability and hubs are still being computed.
    """
    kinds = ["By timestep", "By network block", "Stability and hubs"]
    kind = st.pills("Evidence", kinds, default=kinds[0], required=True, key="evidence_kind",
                    label_visibility="collapsed")  # fmt: skip
    shown = answer.proponents[:SHOWN]
    try:
        rows = tuple(answer.table.rows[s.record.id] for s in shown)
        if kind == kinds[0] and answer.large:  # to rank by a band of timesteps takes passes over all images
            _bars(service.answer(run, answer.setting, split_by_timestep, rows), range(len(rows)), shown, "timestep")
        elif kind == kinds[0]:
            st.fragment(_timesteps)(service.answer(run, answer.setting, split_by_timestep), answer.table, shown)
        elif kind == kinds[1]:
            split = service.answer(run, answer.setting, split_by_block, rows)
            _bars(split, range(len(rows)), shown, "network block")
        elif pending:
            st.info("Not computed yet; see the progress beside the image.")
        else:
            _lists(answer, stable, hub)
    except DtrakError as reason:
        st.info(explain(reason))


def _timesteps(split: Split, table: Table, shown: Sequence[Scored]) -> None:
    """Choose a band of timesteps; show its ranking and its part of the scores."""
    marks = sorted(set(split.timesteps))
    if len(marks) < 2:
        st.info("This setting has a single timestep.")
        return
    first, last = st.select_slider("Timesteps", marks, (marks[0], marks[-1]), key="scrub",
                                   help="0: almost no noise; 999: almost pure noise.")  # fmt: skip
    chosen, part = timestep_band(split, first, last)
    st.caption(f"Ranking from timesteps {first} to {last} only: {len(chosen)} of {len(split.names)} parts.")
    gallery(tiles(top_scored(part, table, SHOWN), table), "proponent", "scrubbed")
    _bars(split, [table.rows[s.record.id] for s in shown], shown, "timestep", chosen)


def _bars(split: Split, rows: Sequence[int], shown: Sequence[Scored], by: str, chosen: Sequence[str] = ()) -> None:
    names = [s.record.caption or s.record.id for s in shown]
    st.plotly_chart(split_bars(split, rows, names, chosen), key=f"{by}-bars",
                    alt=f"The scores of the proponents, split by {by}")  # fmt: skip
    st.caption("The parts of a bar sum to the score of that image, exactly.")


def _lists(answer: Ranking, stable: Stability | None, hub: Hubs | None) -> None:
    if stable is None:
        st.info("Stability requires a method of one model with separately stored timesteps.")
    else:
        st.markdown(
            f"{stable_count(answer.proponents, answer.table, stable)} of the {len(answer.proponents)} proponents shown "
            f"are in the top {stable.top} in at least 50 % of {stable.resamples} resamples of the query's timesteps "
            "and of either half of the projection. The percentage on a tile is that share; images below 50 % are "
            "marked unstable and faded. Retraining is not part of it."
        )
    if hub is not None:
        count, digits = int(hub.marked.sum()), 1 if hub.expected > 0.001 else 3
        st.markdown(
            f"{count} training images are hubs: in the top {answer.top} of more than {HUB_FACTOR:.0f} times as many "
            f"unrelated rankings as expected by chance ({percent(hub.expected, digits)}). A hub says little about "
            "this image."
        )
