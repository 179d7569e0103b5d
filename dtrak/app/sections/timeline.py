"""The denoising path as a strip: what the model saw at each timestep, and the strongest source there."""

import numpy as np
import streamlit as st

from dtrak.analysis.evidence import split_by_timestep
from dtrak.app.elements import describe, explain, plain
from dtrak.app.runs import Run
from dtrak.app.service import StudyService
from dtrak.app.views import format_score
from dtrak.app.widgets import show_end, wait_for
from dtrak.methods.ranking import Ranking
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url

MOST = 10  # timesteps shown


def timeline_section(service: StudyService, run: Run, answer: Ranking) -> None:
    """The strip, from noise to image."""
    if service.query(run).settings is None:
        st.info("Only images that the present model generated here have a denoising path.")
        return
    try:
        split = service.answer(run, answer.setting, split_by_timestep)
    except DtrakError as reason:
        st.info(explain(reason))
        return
    order = sorted(range(len(split.timesteps)), key=lambda i: -split.timesteps[i])
    order = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, MOST).astype(int)).tolist()]
    times = [split.timesteps[i] for i in order]
    job = service.path(run, times)
    if show_end(job):
        if not st.button("Generate again", key="timeline-again"):
            return
        job = service.path(run, times, again=True)
    if job.state != "done":
        wait_for(job, "Generating the image again, step", "timeline-cancel")
        return
    st.caption(
        "From noise to image. Above: the image that the model predicts at this timestep. Below: the training image "
        "with the largest part of the score there. Early steps set the structure, late ones the texture."
    )
    table = service.attributor.table
    with st.container(horizontal=True):
        for number, (i, pixels) in enumerate(zip(order, job.result, strict=True)):
            best = int(split.scores[i].argmax())
            record = table.records[best]
            with st.container(width=104, key=f"step-{number}"):
                st.image(data_url(pixels, 96), width=96, alt=f"Predicted image at timestep {times[number]}")
                st.caption(f"t = {times[number]}")
                st.image(data_url(table.pixels[best], 64), width=64, alt=describe(record))
                st.caption(f"{plain(record.caption or record.id)}  \n{format_score(float(split.scores[i, best]))}")
