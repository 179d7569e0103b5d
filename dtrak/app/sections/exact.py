"""Exact influence on the Attribution page: computed in the background, then compared with the ranking shown."""

import streamlit as st
from scipy.stats import spearmanr

from dtrak.app.elements import explain
from dtrak.app.jobs import retraining_queue
from dtrak.app.runs import Run
from dtrak.app.service import StudyService, all_scores
from dtrak.app.views import tiles
from dtrak.app.widgets import gallery, show_end, wait_for
from dtrak.methods.exact import SMOOTH, check_exact
from dtrak.methods.ranking import Ranking, top_scored
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError

SHOWN = 6


def exact_section(service: StudyService, run: Run, answer: Ranking) -> None:
    """The exact influence on a picture, or a button that computes it."""
    if run.region is not None:
        st.info("The exact influence is computed for whole images.")
        return
    try:
        check_exact(service.folder)
    except DtrakError as error:
        st.info(explain(error))
        return
    found = service.retraining.exact(run)
    if found is None:
        _compute(service, run)
        return
    scores, growth = found
    looks, _ = service.answer(run, Setting("pixel-cos"), all_scores)
    correlation, pixels = (float(spearmanr(s, scores).statistic) for s in (answer.scores, looks))
    st.markdown(
        f"Rank correlation of the ranking above with the exact influence on this image: **{correlation:.2f}** over "
        f"{len(scores)} training images. Pixel cosine alone has {pixels:.2f}; chance stays within "
        f"±{2 / len(scores) ** 0.5:.2f} in 95 %."
    )
    if growth > SMOOTH:
        st.warning(
            f"This training is not smooth: its adjoint grew {growth:.1e}-fold. The derivative is right, but a removal "
            "is not a small change here, so it says little about removals."
        )
    table = service.attributor.table
    gallery(tiles(top_scored(scores, table, SHOWN), table), "proponent", "exact-proponents")
    st.caption(
        "∂L/∂w, the derivative of this image's loss with respect to each training image's weight, taken through the "
        "whole training. Nothing is estimated, but it holds for small changes of the weights."
    )


def _compute(service: StudyService, run: Run) -> None:
    steps = service.folder.study.training.steps
    st.caption(
        "The exact influence differentiates through the whole training: the study's recipe is run forward and walked "
        f"backwards ({steps} steps, about six times the time of one training). It runs in the background and resumes."
    )
    job = retraining_queue().get(service.retraining.exact_key(run))
    if job is not None:
        show_end(job, "Cancelled; finished steps are kept.")
    if (job is not None and job.active) or st.button("Compute the exact influence", key="exact_go"):
        wait_for(service.retraining.compute_exact(run), "Steps:", "exact_cancel", jobs=retraining_queue())
