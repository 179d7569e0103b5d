"""The app: ``streamlit run app.py``. Routes to ``pages/`` and shows the study picker.

``app`` is what Streamlit serves, with the headers of :mod:`dtrak.app.security`; the rest runs in each session.
"""

import streamlit as st
from starlette.middleware import Middleware
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.starlette import App

from dtrak.app.components import component_file
from dtrak.app.security import SecurityHeaders
from dtrak.app.widgets import choose_study, load, wait_until_loaded

app = App(__file__, middleware=[Middleware(SecurityHeaders)])


def run_page() -> None:
    """One run of the chosen page."""
    st.set_page_config(page_title="dtrak", page_icon="🧭", layout="wide")
    st.html(f"<style>{component_file('page.css')}</style>")
    home, about = st.Page("pages/home.py", title="Home", default=True), st.Page("pages/about.py", title="About")
    pages = [
        home,
        st.Page("pages/generate.py", title="Generate"),
        st.Page("pages/attribution.py", title="Attribution"),
        st.Page("pages/ablate.py", title="Ablate"),
        st.Page("pages/compare.py", title="Compare"),
        st.Page("pages/explore.py", title="Explore"),
        st.Page("pages/evaluate.py", title="Evaluate"),
        st.Page("pages/ledger.py", title="Ledger"),
        about,
        st.Page("pages/sample.py", title="Training image", visibility="hidden"),
    ]
    page = st.navigation(pages)
    choose_study()
    if page not in (home, about):
        wait_until_loaded()
    page.run()
    load()  # in the background, for the next page


if get_script_run_ctx(suppress_warning=True) is not None:
    run_page()
