"""The app: ``streamlit run app.py``. Routes to ``pages/`` and shows the study picker."""

import streamlit as st

from dtrak.app.widgets import choose_study, load, wait_until_loaded

st.set_page_config(page_title="dtrak", page_icon="🧭", layout="wide")
home, about = st.Page("pages/home.py", title="Home", default=True), st.Page("pages/about.py", title="About")
pages = [
    home,
    st.Page("pages/generate.py", title="Generate"),
    st.Page("pages/attribution.py", title="Attribution"),
    st.Page("pages/ablate.py", title="Ablate"),
    st.Page("pages/compare.py", title="Compare"),
    st.Page("pages/evaluate.py", title="Evaluate"),
    st.Page("pages/creators.py", title="Creators"),
    about,
    st.Page("pages/sample.py", title="Training image", visibility="hidden"),
]
page = st.navigation(pages)
choose_study()
if page not in (home, about):
    wait_until_loaded()
page.run()
load()  # in the background, for the next page
