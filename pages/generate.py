"""Generate images from seeds, watch the denoising, and open them in Attribution."""

import streamlit as st

from dtrak.app.elements import plain
from dtrak.app.jobs import Job, queue
from dtrak.app.runs import read_settings
from dtrak.app.widgets import current_service, hand_over_to_app, show_end, show_error, wait_for
from dtrak.models.generation import GenerationSettings
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url

ANY = "any"
MOST_TEXT, MOST_CLASS = 20.0, 5.0  # guidance
KEPT = 12  # images in the strip
MOST_CAPTIONS = 5_000  # offered as prompts


def restore() -> None:
    """Restore the settings from an uploaded PNG."""
    dropped = st.session_state.get("png")
    st.session_state.pop("restore_error", None)
    if dropped is None:
        return
    try:
        settings = read_settings(dropped.getvalue())
    except DtrakError as error:
        st.session_state["restore_error"] = error
        return
    st.session_state.update(seed=settings.seed, steps=min(max(settings.steps, 5), 200), images=1)
    most = MOST_TEXT if service.takes_text else MOST_CLASS
    known = service.takes_text or settings.label is None or settings.label in service.classes
    st.session_state.update(
        guidance=min(settings.guidance, most), label=settings.label if known and settings.label else ANY
    )
    st.session_state.update(restored=known)
    if not known:
        st.session_state["restore_error"] = DtrakError(
            f"This study has no class '{settings.label}'.", hint="Choose the study that generated the image."
        )
    st.session_state.update(prompt=settings.label or "", negative=settings.negative, lora=settings.lora_scale)


def take_caption() -> None:
    """Use the chosen caption as the prompt."""
    if st.session_state["caption"]:
        st.session_state["prompt"] = st.session_state["caption"]


def condition() -> str | None:
    """The class or prompt entered in the form."""
    if service.takes_text:
        suggestion = service.classes[0] if service.classes else ""
        table = service.attributor.table
        captions = sorted({name for name in table.train_records[:MOST_CAPTIONS].column("caption") if name})
        prompt = st.text_area("Prompt", suggestion, height=68, max_chars=500, key="prompt", bind="query-params")
        st.selectbox(
            "Or the caption of a training image", captions, index=None, key="caption", on_change=take_caption,
            placeholder="Type to search",
        )  # fmt: skip
        return prompt.strip() or None
    if service.classes:
        label = st.selectbox("Class", [ANY, *service.classes], index=1, key="label", bind="query-params")
        return None if label == ANY else label
    return None


def kept() -> None:
    """Show the latest images, so that there is something to attribute at once."""
    found = service.runs.latest(KEPT)
    if not found:
        return
    st.caption("Kept images")
    with st.container(horizontal=True):
        for run in found:
            with st.container(width=112, key=f"kept-{run.id}"):
                st.image(data_url(run.pixels, 128), width=96, alt=run.title)
                st.page_link("pages/attribution.py", label="Attribute", query_params={"run": run.id},
                             help=plain(run.title))  # fmt: skip


hand_over_to_app()
st.title("Generate")
service = current_service()
form, results = st.columns([1, 2], gap="large")
with form:
    label = condition()
    st.number_input(
        "Seed", 0, 2**32 - 1, 7, key="seed", bind="query-params", help="The same seed gives the same pixels."
    )
    press = st.container()
    with st.expander("Options"):
        st.slider("Steps", 5, 200, 50, key="steps", bind="query-params", help="Denoising steps (DDIM).")
        st.slider("Images", 1, 8, 1, key="images", bind="query-params", help="Uses this seed and the following ones.")
        negative, guidance, lora = "", 1.0, 1.0
        if service.takes_text:
            negative = st.text_input("Negative prompt", max_chars=500, key="negative", bind="query-params",
                                     help="What guidance steers away from.").strip()  # fmt: skip
        if service.takes_text or service.classes:
            most = MOST_TEXT if service.takes_text else MOST_CLASS
            start_at = service.folder.study.guidance
            guidance = st.slider("Guidance", 0.0, most, start_at, 0.5, key="guidance", bind="query-params")
        if service.takes_text and service.has_adapter:
            lora = st.slider("LoRA scale", 0.0, 2.0, 1.0, 0.05, key="lora", bind="query-params",
                             help="0 uses the base model only.")  # fmt: skip
    settings = [
        GenerationSettings(
            int(st.session_state["seed"]) + i,
            st.session_state["steps"],
            label,
            guidance,
            negative,
            lora,
        )
        for i in range(st.session_state["images"])
    ]
    start = press.button("Generate", type="primary", width="stretch", key="generate")
    st.file_uploader("Restore settings from a downloaded PNG", type=["png"], key="png", on_change=restore)
    if "restore_error" in st.session_state:
        show_error(st.session_state["restore_error"])
    elif st.session_state.pop("restored", False):
        st.success("Settings restored. Press Generate to regenerate the image.")

with results:
    if start:
        try:
            st.session_state["job"] = service.generate(settings).key
        except DtrakError as error:
            show_error(error)
    job: Job | None = queue().get(st.session_state.get("job", ""))
    runs = service.find(settings)
    if job and job.active:
        wait_for(job, "Step", "cancel")
    elif job and job.state != "done" and not runs:
        show_end(job, "Cancelled. Nothing was saved. Press Generate to start again.")
    elif not runs:
        st.info("Choose a prompt and a seed, and press Generate; an image takes a few seconds.")
    if runs and not (job and job.active):
        columns = st.columns(min(len(runs), 4))
        for place, run in enumerate(runs):
            with columns[place % len(columns)], st.container(border=True, key=f"run-{run.id}"):
                st.image(data_url(run.pixels, 192), width="stretch", alt=f"Generated image, {run.title}")
                st.markdown(plain(run.title))
                if st.button("Attribute", key=f"attribute-{run.id}", width="stretch", type="primary"):
                    st.switch_page("pages/attribution.py", query_params={"run": run.id})
                st.download_button(
                    "Download PNG", service.runs.image_bytes(run), f"{run.id}.png", "image/png",
                    key=f"download-{run.id}", on_click="ignore", width="stretch",
                    help="Contains its settings; upload it here to restore them.",
                )  # fmt: skip
    if not runs and not (job and job.active):
        kept()
