"""The reliability card: the measured LDS of a method, shown with every ranking."""

import streamlit as st

from dtrak.app.elements import plain
from dtrak.app.evaluate import Reliability, reliability
from dtrak.app.runs import Run
from dtrak.app.service import StudyService
from dtrak.methods.settings import Setting

SIGN = {"measured": ":material/verified:", "weak": ":material/warning:", "unknown": ":material/help:"}


def reliability_card(service: StudyService, setting: Setting, run: Run | None = None, key: str = "trust") -> None:
    """The measured LDS of a setting with its 95 % interval, linked to the Evaluate page.

    Args:
        run: the query; without one, generated images are assumed.
        key: prefix of the widget key.
    """
    generated = run is None or run.settings is not None
    found = reliability(service.evaluation, setting, generated)
    with st.container(border=True, key=f"{key}-card"):
        st.markdown(f"{SIGN[found.kind]} **Measured reliability.** {plain(found.text)}")
        if not generated and found.row is not None and found.row.queries == "held-out":
            st.caption("This image was not generated here; held-out images are the closest measured case.")
        st.page_link("pages/evaluate.py", label="How this was measured")


def short(found: Reliability) -> str:
    """The measured LDS × 100 with its interval, for the title of a lane."""
    if found.row is None:
        return "LDS not measured"
    low, high = found.row.interval
    return f"LDS {100 * found.row.lds_crossfit:.0f} ({100 * low:.0f} to {100 * high:.0f})".replace("-", "−")
