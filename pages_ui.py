"""What the pages share: the study picker, the gallery, errors with a way out, and waiting for a job."""

from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from dtrak.config import load_study, study_names
from dtrak.errors import DtrakError
from dtrak.studies import StudyFolder, study_status
from dtrak.ui.jobs import Job
from dtrak.ui.services import StudyService, queue, study_service
from dtrak.ui.views import enlarged_png

POLL_SECONDS = 0.25

GALLERY_CSS = """
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(108px, 1fr)); gap: 12px; }
button { font: inherit; text-align: left; color: var(--st-text-color); background: var(--st-secondary-background-color);
  border: 1px solid transparent; border-radius: 10px; padding: 8px; cursor: pointer; min-width: 0; }
button:hover { border-color: var(--st-primary-color); }
button:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 1px; }
img { width: 100%; aspect-ratio: 1; border-radius: 6px; image-rendering: pixelated; background: #fff; display: block; }
.bar { height: 4px; border-radius: 2px; margin: 7px 0 5px; background: #8a93a340; }
.bar i { display: block; height: 4px; border-radius: 2px; background: #2f6fdb; }
.opponent .bar i { background: #c4532d; }
.score { font-weight: 600; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.text { font-size: 0.8rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""
GALLERY_JS = """
export default function ({ parentElement, data, setTriggerValue }) {
  const grid = document.createElement('div');
  grid.className = 'grid ' + data.side;
  grid.setAttribute('role', 'group');
  grid.setAttribute('aria-label', data.label);
  for (const tile of data.tiles) {
    const button = document.createElement('button');
    button.type = 'button';
    button.dataset.id = tile.id;
    button.dataset.score = tile.score;
    button.title = tile.caption;
    const image = document.createElement('img');
    image.src = tile.src; image.alt = tile.alt;
    const bar = document.createElement('div'); bar.className = 'bar';
    const fill = document.createElement('i'); fill.style.width = (100 * tile.share) + '%'; bar.append(fill);
    button.append(image, bar);
    for (const [name, text] of [['score', tile.place + '.  ' + tile.score], ['text', tile.caption],
                                ['text', tile.creator], ['text', tile.licence]]) {
      const line = document.createElement('div'); line.className = name; line.textContent = text; button.append(line);
    }
    button.onclick = () => setTriggerValue('clicked', tile.id);
    grid.append(button);
  }
  const root = parentElement.querySelector('#gallery') || parentElement;
  root.replaceChildren(grid);
}
"""


def hand_over_to_app() -> None:
    """Make a deep link into a new server end in ``app.py``.

    Until ``st.navigation`` has run once, Streamlit takes every file in ``pages/`` for a page of its
    own and skips ``app.py``; there is no public switch for that, so its flag is cleared here.
    """
    if "study" not in st.session_state:
        PagesManager.uses_pages_directory = False
        st.rerun()


def choose_study() -> None:
    """The sidebar: which study, and what of it is built."""
    names = study_names()
    with st.sidebar:
        st.selectbox(
            "Study", names, index=names.index("demo") if "demo" in names else 0, key="study", bind="query-params"
        )
        try:
            status = study_status(StudyFolder(load_study(st.session_state["study"])))
            st.caption(f"{status['title']}  \nData: {status['data']}  \nIndex: {status['index']}")
        except DtrakError as error:
            st.caption(error.message)


def current_service() -> StudyService:
    """The chosen study, opened; a page that cannot have it says why and stops."""
    name = st.session_state.get("study", "demo")
    try:
        with st.spinner("Opening the study…"):
            service = study_service(name)
            _ = service.model_fingerprint
        return service
    except DtrakError as error:
        show_error(error)
        st.stop()


def show_error(error: DtrakError) -> None:
    """An error with its way out."""
    st.error(error.message)
    if error.hint:
        st.markdown("**What to do**")
        st.code(error.hint, language=None, wrap_lines=True)


def gallery(tiles: list[dict[str, Any]], side: str, key: str) -> None:
    """Training images as tiles; a click opens the image's own page."""
    component = st.components.v2.component(
        "dtrak_gallery", html="<div id='gallery'></div>", css=GALLERY_CSS, js=GALLERY_JS
    )
    result = component(
        data={"tiles": tiles, "side": side, "label": f"{side}s"}, key=key, on_clicked_change=lambda: None
    )
    if result.clicked:
        open_sample(result.clicked)


def open_sample(sample_id: str) -> None:
    """Go to a training image's page; its link can be copied."""
    params = {"id": sample_id}
    if run := st.query_params.get("run"):
        params["run"] = run
    st.switch_page("pages/sample.py", query_params=params)


def wait_for(job: Job, text: str, key: str, on_cancel: Callable[[], None] = lambda: None) -> None:
    """Show a job's progress, picture and place in the queue until it ends; then run the page again."""

    @st.fragment(run_every=POLL_SECONDS)
    def poll() -> None:
        if not job.active:
            st.rerun()
        ahead = queue().position(job)
        if job.state == "queued" and ahead:
            st.progress(0.0, f"Waiting: {ahead} before this")
        else:
            st.progress(min(job.done / job.total, 1.0), f"{text} {job.done} of {job.total}")
        if job.preview is not None:
            st.image(
                [enlarged_png(picture) for picture in job.preview],
                width=128,
                alt=["The picture so far"] * len(job.preview),
            )
        if st.button("Cancel", key=key):
            job.cancel()
            on_cancel()

    poll()
