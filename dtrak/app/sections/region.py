"""Asking about a part of the image: a box drawn on it becomes the region of the query."""

import streamlit as st

from dtrak.app.elements import explain
from dtrak.app.figures import picture_to_box
from dtrak.app.runs import Run
from dtrak.gradients.region import Region
from dtrak.utils.errors import DtrakError

PARAM = "region"
LEAST = 0.02  # shorter sides are no box, as a share of the image


def region_in_url() -> Region | None:
    """The region in the URL; an invalid one is skipped with a warning."""
    text = st.query_params.get(PARAM)
    if not text:
        return None
    try:
        return Region.parse(text)
    except DtrakError as error:
        st.warning(explain(error))
        return None


def region_section(run: Run) -> None:
    """Draw a box on the image, or go back to the whole image."""
    st.caption("Drag a box over a part of the image: which training images shaped this part?")
    shown = "" if run.region is None else run.region.text  # a new region is a new chart, with nothing selected
    found = st.plotly_chart(
        picture_to_box(run.pixels, run.region), key=f"region-box-{shown}", on_select="rerun", selection_mode="box",
        config={"displayModeBar": False}, alt="The image; drag a box over the part to ask about",
    )  # fmt: skip
    boxes = found.get("selection", {}).get("box", [])
    if boxes:
        side = run.pixels.shape[0]
        x, y = (sorted(min(max(v / side, 0.0), 1.0) for v in boxes[0][axis]) for axis in ("x", "y"))
        if min(x[1] - x[0], y[1] - y[0]) > LEAST:
            _ask(Region(x[0], y[0], x[1], y[1]))
    _by_numbers(run.region or Region(0.25, 0.25, 0.75, 0.75))
    if run.region is not None and st.button("Ask about the whole image", key="region-clear"):
        del st.query_params[PARAM]
        st.rerun()


def _by_numbers(now: Region) -> None:
    """The same box by two sliders, for the keyboard."""
    with st.popover("Set the box by numbers"), st.form("region-numbers", border=False):
        x = st.slider("Left and right edge", 0, 100, (round(100 * now.left), round(100 * now.right)), format="%d %%")
        y = st.slider("Top and bottom edge", 0, 100, (round(100 * now.top), round(100 * now.bottom)), format="%d %%")
        if st.form_submit_button("Ask about this part"):
            if min(x[1] - x[0], y[1] - y[0]) <= 100 * LEAST:
                st.warning("The box is too small. Move the edges apart.")
            else:
                _ask(Region(x[0] / 100, y[0] / 100, x[1] / 100, y[1] / 100))


def _ask(region: Region) -> None:
    """Make this the region of the query."""
    if region.text != st.query_params.get(PARAM):
        st.query_params[PARAM] = region.text
        st.rerun()
