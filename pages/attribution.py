"""Which training images a picture leans on: proponents, opponents, all scores, and who made them."""

import streamlit as st

from dtrak.data import BadImage
from dtrak.errors import DtrakError
from dtrak.queries import query_from_bytes
from dtrak.ui.figures import score_histogram, share_bars
from dtrak.ui.services import queue
from dtrak.ui.views import default_power, effective_number, enlarged_png, shares, tiles, z_score
from pages_ui import current_service, gallery, hand_over_to_app, show_error, wait_for

ANY = "any"

hand_over_to_app()
st.title("Attribution")
service = current_service()


def open_run(run_id: str) -> None:
    """Show a run, and put it in the URL."""
    st.query_params["run"] = run_id
    st.rerun()


def upload() -> None:
    """Take an image from disk."""
    file = st.file_uploader("Attribute an image of yours", type=["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif"])
    label = ANY
    if service.classes:
        label = st.selectbox("Read it as", [ANY, *service.classes], help="The class that the model is told.")
    if file is not None and st.button("Attribute this image", type="primary"):
        try:
            query = query_from_bytes(service.attributor, file.getvalue(), None if label == ANY else label)
            open_run(service.runs.save_upload(query.pixels, query.label).id)
        except BadImage as reason:
            show_error(DtrakError(f"This image cannot be used: {reason}.", hint="Give a PNG, JPEG or WebP image."))
        except DtrakError as error:
            show_error(error)
    st.caption("A foreign image gets scores too, but the model never drew it: read them as resemblance at most.")


def choose() -> None:
    """The page without a run: recent ones, or an upload."""
    recent = service.runs.latest(8)
    if recent:
        st.markdown("Choose a recent picture, or upload one.")
        columns = st.columns(8)
        for column, run in zip(columns, recent, strict=False):
            column.image(enlarged_png(run.pixels, 96), width="stretch", alt=run.title)
            if column.button("Open", key=f"open-{run.id}", help=run.title, width="stretch"):
                open_run(run.id)
    else:
        st.info("Nothing was generated yet.")
        st.page_link("pages/generate.py", label="Generate a picture")
    upload()


run_id = st.query_params.get("run")
run = service.runs.load(run_id) if run_id else None
if run_id and run is None:
    st.warning(f"There is no run '{run_id[:40]}' in this workspace. It may have been made with another one.")
if run is None:
    choose()
    st.stop()

left, right = st.columns([1, 3], gap="large")
with left:
    st.image(enlarged_png(run.pixels, 256), width="stretch", alt=f"The query: {run.title}")
    st.markdown(f"**{run.title}**")
    methods = service.attributor.methods()
    titles = {m.name: m.title for m in methods}
    name = st.pills(
        "Method", list(titles), format_func=titles.get, default=methods[0].name, required=True,
        key="method", bind="query-params",
    )  # fmt: skip
    method = next(m for m in methods if m.name == name)
    damping = None
    if method.damping is not None:
        power = st.slider(
            "Damping λ, power of ten", -4.0, 4.0, value=default_power(method.damping), step=0.25,
            key=f"damping_{method.name}", bind="query-params",
            help="Relative to the mean eigenvalue. "
            "Small: what is special about an image counts; large: plain dot product.",
        )  # fmt: skip
        damping = 10**power
    top = st.slider("Shown", 5, 30, 10, step=5, key="top", bind="query-params")
    if damping is not None:
        st.caption(f"λ = {damping:.3g} × mean eigenvalue")
    st.caption(method.formula)
    with st.expander("Another image"):
        upload()

with right:
    try:
        answer = service.attribute(run, method.name, damping, top)
        if answer is None:
            job = queue().get(f"features:{service.folder.study.name}:{run.id}")
            if job and job.state == "failed" and job.error:
                raise job.error
            if not (job and job.state == "cancelled") or st.button("Compute again"):
                wait_for(service.compute_features(run), "Gradients of the query:", "cancel-features")
            else:
                st.info("Cancelled.")
            st.stop()
    except DtrakError as error:
        show_error(error)
        st.stop()
    table = service.attributor.table
    st.markdown(
        f"Removing the **proponents** should change this image most, according to {method.title}; "
        "**opponents** pull the other way."
    )
    st.subheader("Proponents")
    gallery(tiles(answer.proponents, table), "proponent", "proponents")
    st.subheader("Opponents")
    gallery(tiles(answer.opponents, table), "opponent", "opponents")
    st.subheader("All scores")
    st.plotly_chart(score_histogram(answer), key="histogram", alt="Histogram of the scores of all training images")
    records = table.records[: table.train_size]
    top_text = f"The top score lies {z_score(answer):.1f} standard deviations above the mean of all {len(records)}."
    st.caption(
        f"{top_text} Positive mass is spread over the equivalent of {effective_number(answer.scores):.0f} images."
    )
    for title, key in (("By creator", "creator"), ("By class", "label")):
        st.subheader(title)
        found = shares(list(records), answer.scores, key)
        st.plotly_chart(share_bars(found), key=f"shares-{key}", alt=f"Shares of positive mass, {title.lower()}")
    st.caption(
        f"Shares are of the positive mass only, never of the image. Fingerprint {answer.fingerprint}. "
        f"{service.folder.study.data.credit or ''}"
    )
