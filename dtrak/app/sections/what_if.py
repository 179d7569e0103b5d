"""The what-if section: predict how removing training images changes an image, and retrain without them on request."""

from dataclasses import replace

import numpy as np
import streamlit as st

from dtrak.app.elements import describe, explain, plain
from dtrak.app.jobs import retraining_queue
from dtrak.app.runs import Run
from dtrak.app.service import StudyService
from dtrak.app.widgets import pinned, show_end, show_error, wait_for
from dtrak.evaluation.counterfactual import compare
from dtrak.evaluation.whatif import predict
from dtrak.methods.exact import SMOOTH
from dtrak.methods.ranking import Ranking
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.study.folder import check_retrainable
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url
from dtrak.utils.text import percent

TOP, PINNED, CREATOR, CLASS, HAND = "Top proponents", "Pinned", "Creator", "Class", "Manual selection"


def what_if(service: StudyService, run: Run, answer: Ranking) -> None:
    """Choose training images, see the predicted effect of removing them, and retrain without them.

    The prediction is by the exact influence where it was computed and the training is smooth, else by the ranking.
    """
    st.markdown("Choose training images to remove and see the predicted effect on this image.")
    exact = service.retraining.exact(run)
    usable = exact is not None and exact[1] <= SMOOTH
    if exact is not None and usable:
        answer = replace(answer, setting=Setting("exact"), damping=None).rescored(exact[0], "score")
    removed = _choose(service, answer)
    table = service.attributor.table
    if not removed:
        st.caption("No training image is chosen.")
        return
    found = predict(answer.scores, table.rows.many(removed))
    images = f"{found.count} image" + ("s" if found.count > 1 else "")
    direction, beyond = ("worse", found.beyond) if found.z >= 0 else ("better", 1 - found.beyond)
    st.markdown(
        f"{METHODS[answer.setting.method].title} predicts that without these {images} the model does **{direction}** "
        f"on this image than without {_most(beyond)} of random sets of the same size (z = {found.z:+.1f}). "
        f"They hold {percent(found.share)} of the positive scores."
    )
    st.caption("Linear prediction: the sum of the removed images' scores. "
               + plain(service.reliability(answer.setting, run).text))  # fmt: skip
    if exact is not None and not usable:
        st.caption("The exact influence is not used: this training is not smooth, so it says little about removals.")
    if run.settings is None:
        st.info("Only images generated here can be regenerated.")
        return
    if found.count > table.train_size - 2:
        st.info("At least two training images must remain.")
        return
    _retrain(service, run, removed)


def _most(share: float) -> str:
    """A share in per cent, never rounded up to 100 %."""
    return percent(share) if share < 0.995 else "over 99 %"


def _choose(service: StudyService, answer: Ranking) -> list[str]:
    table = service.attributor.table
    records = table.train_records
    kinds = [TOP, *([PINNED] if pinned() else []), *([CREATOR] if len(records.distinct("creator")) > 1 else []),
             *([CLASS] if len(table.labels) > 1 else []), HAND]  # fmt: skip
    kind = st.segmented_control("Remove", kinds, default=TOP, required=True, key="what_if_kind")
    if kind == TOP:
        most = max(1, min(100, len(records) - 2))
        count = 1 if most == 1 else st.slider("How many", 1, most, min(20, most), key="what_if_count")
        order = np.argsort(-answer.scores, kind="stable")[:count]
        return [records[row].id for row in order]
    if kind == PINNED:
        return [sample_id for sample_id in pinned() if table.rows.get(sample_id, len(records)) < len(records)]
    if kind == HAND:
        order = np.argsort(-answer.scores, kind="stable").tolist()
        titles = {records[row].id: describe(records[row]).removeprefix("Training image: ") for row in order}
        return st.multiselect(
            "Training images, strongest proponents first",
            list(titles),
            format_func=titles.__getitem__,
            key="what_if_hand",
        )
    field = "creator" if kind == CREATOR else "label"
    names, codes = records.grouped(field)
    chosen = st.selectbox(kind, names, key=f"what_if_{field}")
    return [table.train_ids[row] for row in np.flatnonzero(codes == names.index(chosen))]


def _retrain(service: StudyService, run: Run, removed: list[str]) -> None:
    try:
        check_retrainable(service.folder)
    except DtrakError as error:
        st.info(explain(error))
        return
    jobs = service.retraining
    tasks = jobs.what_if(run, removed)
    pictures = jobs.retrained(tasks)
    recipe = tasks[0].removal
    epochs = f"{recipe.steps} training steps ({recipe.epochs(service.folder):.1f} epochs)"
    if pictures is None:
        for other in retraining_queue().active():
            if other.key != jobs.what_if_key(tasks):
                st.caption(f"Another retraining is running: {other.done} of {other.total} steps.")
                st.button("Cancel the other retraining", key=f"cancel-{other.key}", on_click=other.cancel)
        job = retraining_queue().get(jobs.what_if_key(tasks))
        if job is not None:
            show_end(job, "Cancelled; finished models are kept.")
        missing = sum(jobs.retrained([task]) is None for task in tasks)
        st.caption(
            f"Retraining takes {epochs} from the same seed, half of the recipe's "
            f"{service.folder.study.training.steps} steps, {missing} times: with all images, without these, and "
            "without as many random others. It runs in the background and shows the time left."
        )
        active = job is not None and job.active
        if active or st.button("Retrain and show", type="primary", key="what_if_go"):
            wait_for(jobs.retrain_without(tasks), "Training steps:", "what_if_cancel", jobs=retraining_queue())
        return
    everything, without, others = pictures
    titles = (
        "This image",
        f"All images, {epochs}",
        f"Without these {len(removed)}",
        f"Without {len(removed)} random others",
    )
    columns = st.columns(4)
    for column, title, pixels in zip(columns, titles, (run.pixels, *pictures), strict=True):
        column.image(data_url(pixels, 160), width="stretch", alt=f"{title}: {run.title}")
        column.markdown(f"**{title}**")
    try:
        for column, after in zip(columns[2:], (without, others), strict=True):
            distance, cosine = compare(service.attributor, everything, after[None])
            column.caption(f"ℓ2 {distance:.1f}, embedding cosine {cosine:.3f} to 'all images'")
    except DtrakError as error:
        show_error(error)
    st.caption(
        f"Retrained for {epochs} from the same seed and regenerated from the same noise. Compare with 'all images', "
        "not with the image of the full recipe. One retraining is one sample: small differences mean little."
    )
