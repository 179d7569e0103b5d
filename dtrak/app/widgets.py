"""Widgets shared by the pages: study picker, image picker, gallery, errors, and progress of jobs.

Importing torch, diffusers and peft takes seconds, so Home and About avoid it; see :func:`load`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from dtrak.app.components import component_file
from dtrak.app.elements import explain, plain
from dtrak.app.jobs import Job, JobQueue, queue
from dtrak.build.status import building, commands_left, study_status
from dtrak.config import load_study, study_names
from dtrak.methods.settings import Setting
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url, png_url

if TYPE_CHECKING:
    from dtrak.app.runs import Run
    from dtrak.app.service import StudyService

POLL_SECONDS = 0.25
RECENT = 8  # images in the menu


def hand_over_to_app() -> None:
    """Make a deep link into a new server run ``app.py``.

    Until ``st.navigation`` has run once, Streamlit treats every file in ``pages/`` as a page of its own and skips
    ``app.py``. There is no public switch for that, so its flag is cleared here.
    """
    if "study" not in st.session_state:
        PagesManager.uses_pages_directory = False
        st.rerun()


@functools.cache
def load() -> threading.Thread:
    """Start importing what opening a study needs, in a thread that can be joined."""
    thread = threading.Thread(target=importlib.import_module, args=("dtrak.app.service",), daemon=True)
    thread.start()
    return thread


def wait_until_loaded() -> None:
    """Wait for :func:`load` behind a spinner.

    A deep link into a new server imports the page's modules before anything is shown, without the spinner.
    """
    if load().is_alive():
        with st.spinner("Loading torch and diffusers…"):
            load().join()


def choose_study() -> None:
    """The study picker in the sidebar, with the study's description and status."""
    names = study_names()
    with st.sidebar:
        st.selectbox(
            "Study", names, index=names.index("demo") if "demo" in names else 0, key="study", bind="query-params"
        )
        try:
            study = load_study(st.session_state["study"])
            status = study_status(StudyFolder(study))
            st.caption(f"**{plain(status['title'])}**")
            if study.description:
                st.caption(plain(study.description))
            st.caption(f"Data: {status['data']}  \nIndex: {status['index']}")
        except DtrakError as error:
            st.caption(plain(error.message))


def current_service() -> StudyService:
    """The chosen study, opened; if that fails, the page shows the reason and stops."""
    from dtrak.app.service import study_service

    name = st.session_state.get("study", "demo")
    try:
        with st.spinner("Opening the study…"):
            service = study_service(name)
            _ = service.model_fingerprint
        return service
    except DtrakError as error:
        with contextlib.suppress(DtrakError):
            if building(StudyFolder(load_study(name))):
                wait_for_build(name)
        show_error(error)
        with contextlib.suppress(DtrakError):  # the configuration itself may be invalid
            if missing := commands_left(StudyFolder(load_study(name))):
                st.markdown("Run first, in a terminal:")
                st.code("\n".join(missing), language=None)
                st.page_link("pages/home.py", label="Time and disk space needed")
        st.stop()


def wait_for_build(study: str) -> None:
    """Show the progress of a build that runs beside the app; when it has ended, run the page again. Stops the page."""

    @st.fragment(run_every=3)
    def poll() -> None:
        found = building(StudyFolder(load_study(study)))
        if found is None:
            st.rerun()
        else:
            st.progress(found.done / max(found.total, 1), found.text)

    st.info("The index of this study is being built. This page opens when it is ready.")
    poll()
    st.page_link("pages/home.py", label="See the example on Home")
    st.stop()


def show_error(error: DtrakError) -> None:
    """An error message and its hint."""
    st.error(plain(error.message))
    if error.hint:
        st.markdown("**What to do**")
        st.code(error.hint, language=None, wrap_lines=True)


def gallery(
    tiles: list[dict[str, Any]], side: str, key: str, choose: Callable[[str], None] | None = None, chosen: str = ""
) -> None:
    """Training images as tiles; arrow keys move between them.

    Args:
        tiles: from :func:`dtrak.app.views.tiles`.
        side: "proponent" or "opponent", for the colour.
        choose: called with the id of a clicked image, or "" after Esc; by default a click opens the image's page.
        chosen: id of the image that is marked.
    """
    _show("gallery", {"tiles": tiles, "side": side, "label": f"{side}s", "chosen": chosen}, key, choose)


def lanes(rankings: list[dict[str, Any]], key: str) -> None:
    """Rankings side by side, each with a title and tiles; lines connect the same image in neighbouring rankings."""
    _show("lanes", {"lanes": rankings}, key)


def sources(image: bytes, alt: str, tiles: list[dict[str, Any]], run: str, key: str) -> None:
    """A picture joined to its sources by lines; a click opens the source beside the picture on Attribution.

    Args:
        image: PNG.
        run: id of the picture's run.
    """

    def choose(sample_id: str) -> None:
        st.switch_page("pages/attribution.py", query_params={"run": run, "sample": sample_id})

    _show("sources", {"src": png_url(image), "alt": alt, "tiles": tiles}, key, choose)


def _show(name: str, data: dict[str, Any], key: str, choose: Callable[[str], None] | None = None) -> None:
    css, js = component_file("tiles.css"), component_file(f"{name}.js")
    component = st.components.v2.component(f"dtrak_{name}", html=f"<div id='{name}'></div>", css=css, js=js)
    result = component(data=data, key=key, on_clicked_change=lambda: None, on_closed_change=lambda: None)
    if result.clicked:
        (choose or open_sample)(result.clicked)
    elif result.closed and choose:
        choose("")


def select_sample(sample_id: str) -> None:
    """Put a training image into the URL, for the panel beside the gallery; "" removes it."""
    if sample_id:
        st.query_params["sample"] = sample_id
    else:
        st.query_params.pop("sample", None)
    st.rerun()


def pinned() -> list[str]:
    """The training images pinned in this session, of the chosen study."""
    return st.session_state.setdefault("pinned", {}).setdefault(st.session_state["study"], [])


def toggle_pin(sample_id: str) -> None:
    """Pin a training image, or take it off the shortlist."""
    found = pinned()
    (found.remove if sample_id in found else found.append)(sample_id)


def features_or_wait(service: StudyService, run: Run, settings: list[Setting], key: str) -> bool:
    """Whether a run's features for some settings are computed; if not, compute them and show the progress.

    Raises:
        DtrakError: they cannot be computed.
    """
    if service.features(run, settings) is not None:
        return True
    job = queue().get(service.features_key(run, settings))
    if job is None or not show_end(job) or st.button("Compute again", key=f"{key}-again"):
        wait_for(service.compute_features(run, settings), "Computing gradients of the query:", f"{key}-cancel")
    return False


def settings_of(param: str, service: StudyService, default: str = "") -> list[Setting]:
    """The settings listed in the URL; invalid or unavailable ones are skipped with a warning."""
    found: dict[str, Setting] = {}
    for text in filter(None, st.query_params.get(param, default).split(";")):
        try:
            setting = Setting.parse(text)
            service.attributor.sides(setting)
            found[setting.text] = setting
        except DtrakError as error:
            st.warning(explain(error))
    return list(found.values())


def choose_run(service: StudyService, param: str = "run") -> Run | None:
    """The run in the URL, or else the newest one, with a menu of recent runs; None if there are none."""
    run_id = st.query_params.get(param)
    run = service.runs.load(run_id) if run_id else None
    recent = service.runs.latest(RECENT)
    if run_id and run is None:
        instead = " Below is the newest image." if recent else ""
        st.warning(
            f"There is no run '{plain(run_id[:40])}' in this workspace. It may belong to another workspace.{instead}"
        )
    if not recent:
        st.info("No images generated yet.")
        st.page_link("pages/generate.py", label="Generate an image")
        return None
    if run is None:
        run = recent[0]
        if not run_id:  # an unknown one stays in the URL, and the warning with it, however often the page runs
            st.query_params[param] = run.id
    if len(recent) > 1:
        with st.popover("Recent images"):
            for row in range(0, len(recent), 4):
                for column, found in zip(st.columns(4), recent[row : row + 4], strict=False):
                    column.image(data_url(found.pixels, 96), width=96, alt=found.title)
                    if column.button("Open", key=f"{param}-{found.id}", help=plain(found.title), width="stretch"):
                        forget_details()
                        st.query_params[param] = found.id
                        st.rerun()
    return run


def forget_details() -> None:
    """Take the part of an image and the training image beside it out of the URL; they belong to the image before."""
    for param in ("region", "sample"):
        st.query_params.pop(param, None)


def open_sample(sample_id: str) -> None:
    """Go to the page of a training image."""
    params = {"id": sample_id}
    if run := st.query_params.get("run"):
        params["run"] = run
    st.switch_page("pages/sample.py", query_params=params)


def show_end(job: Job, cancelled: str = "Cancelled.") -> bool:
    """Say why a job has no result; whether it failed or was cancelled.

    Args:
        cancelled: what to say after a cancellation.
    """
    if job.state == "cancelled":
        st.info(cancelled)
    elif job.state == "failed" and job.error:
        show_error(job.error)
    return job.state in ("failed", "cancelled")


def wait_for(
    job: Job, text: str, key: str, on_cancel: Callable[[], None] = lambda: None, jobs: JobQueue | None = None
) -> None:
    """Show a job's progress, preview and position in the queue until it ends; then rerun the page."""
    jobs = jobs or queue()

    @st.fragment(run_every=POLL_SECONDS)
    def poll() -> None:
        if not job.active:
            st.rerun()
        ahead = jobs.position(job)
        if job.state == "queued" and ahead:
            st.progress(0.0, f"Queued: {ahead} ahead")
        else:
            left = job.seconds_left
            time_left = f", about {left / 60:.0f} min left" if left is not None and left > 45 else ""
            st.progress(min(job.done / job.total, 1.0), f"{text} {job.done} of {job.total}{time_left}")
        if job.preview is not None:
            shown = [data_url(picture) for picture in job.preview]
            st.image(shown, width=128, alt=["Preview"] * len(shown))
        if st.button("Cancel", key=key):
            job.cancel()
            on_cancel()

    poll()
