"""Asking about a part of the image: a box drawn on it becomes the region of the query."""

import streamlit as st

from dtrak.app.elements import explain
from dtrak.app.figures import picture_to_box
from dtrak.app.runs import Run
from dtrak.gradients.region import Region
from dtrak.utils.errors import DtrakError

PARAM = "region"


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
    found = st.plotly_chart(
        picture_to_box(run.pixels, run.region), key="region-box", on_select="rerun", selection_mode="box",
        config={"displayModeBar": False}, alt="The image; drag a box over the part to ask about",
    )  # fmt: skip
    boxes = found.get("selection", {}).get("box", [])
    if boxes:
        side = run.pixels.shape[0]
        x, y = (sorted(min(max(v / side, 0.0), 1.0) for v in boxes[0][axis]) for axis in ("x", "y"))
        if x[1] - x[0] > 0.02 and y[1] - y[0] > 0.02:
            wanted = Region(x[0], y[0], x[1], y[1]).text
            if wanted != st.query_params.get(PARAM):
                st.query_params[PARAM] = wanted
                st.rerun()
    if run.region is not None and st.button("Ask about the whole image", key="region-clear"):
        del st.query_params[PARAM]
        st.session_state.pop("region-box", None)
        st.rerun()
