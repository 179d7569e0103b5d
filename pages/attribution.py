"""Which training images a picture leans on: proponents, opponents, all scores, and who made them."""

from functools import partial

import streamlit as st

from dtrak.analysis.evidence import (
    HUB_FACTOR,
    STABLE,
    Null,
    Split,
    above_chance,
    damp_hubs,
    hubs,
    split_by_block,
    split_by_timestep,
)
from dtrak.app.elements import plain
from dtrak.app.exports import to_csv, to_html, to_json
from dtrak.app.figures import score_histogram, share_bars, split_bars
from dtrak.app.jobs import queue_beside
from dtrak.app.trust import reliability_card
from dtrak.app.views import default_power, effective_number, evidence_badges, shares, tiles, unstable, z_score
from dtrak.app.what_if import what_if
from dtrak.app.widgets import (
    choose_run,
    current_service,
    features_or_wait,
    gallery,
    hand_over_to_app,
    show_error,
    wait_for,
)
from dtrak.data import BadImage
from dtrak.methods.queries import query_from_bytes
from dtrak.methods.ranking import Ranking, top_scored
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import enlarged_png
from dtrak.utils.text import percent

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
    if service.takes_text:
        label = st.text_input("Read it as", help="The prompt that the model is told; empty for none.").strip() or ANY
    elif service.classes:
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


def heldout() -> None:
    """Take an image that was held out of training."""
    records = service.attributor.table.records[service.attributor.table.train_size :]
    if not records:
        return
    ids = {r.id: r for r in records}
    chosen = st.selectbox("A held-out image", list(ids), format_func=lambda i: ids[i].caption or i)
    if st.button("Attribute the held-out image"):
        table = service.attributor.table
        row = table.rows[chosen]
        open_run(service.runs.save_upload(table.pixels[row], table.names[row]).id)


run = choose_run(service)
if run is None:
    upload()
    st.stop()

left, right = st.columns([1, 3], gap="large")
with left:
    st.image(enlarged_png(run.pixels, 256), width="stretch", alt=f"The query: {run.title}")
    st.markdown(f"**{plain(run.title)}**")
    if run.settings is not None and run.settings.lora_scale != 1:
        st.warning(
            f"Drawn at LoRA scale {run.settings.lora_scale:g}; features are those of the model at scale 1, so the "
            "answer is about a neighbour of this picture's model."
        )
    lacking = {name: service.attributor.why_not(name) for name in METHODS}
    ready = [name for name, reason in lacking.items() if reason is None]
    name = st.selectbox(
        "Method", ready, format_func=lambda n: METHODS[n].title, key="method", bind="query-params",
    )  # fmt: skip
    method = METHODS[name]
    if len(ready) < len(lacking):
        with st.expander(f"{len(lacking) - len(ready)} more are not built"):
            for other, reason in lacking.items():
                if reason is not None:
                    st.markdown(f"**{METHODS[other].title}**: {reason.message}  \n`{reason.hint}`")
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
    setting = Setting(method.name, damping=damping)
    if note := method.note(service.attributor):
        st.caption(note)
    collapse = False
    if service.duplicates is not None:
        help_text = "Training images that look nearly the same become one tile, with their count."
        collapse = st.toggle("Merge duplicates", value=True, key="collapse", bind="query-params", help=help_text)
    damp = False
    if method.uses_features:
        help_text = "Subtract what each image gets from unrelated queries; scores become z-scores."
        damp = st.toggle("Damp hubs", key="damp", bind="query-params", help=help_text)
    with st.expander("Another image"):
        heldout()
        upload()


def verdict(answer: Ranking, null: Null | None) -> None:
    """Whether the top proponent stands above chance."""
    z = z_score(answer)
    if null is None:
        st.markdown(f"The top score lies {z:.1f} standard deviations above the mean of all {len(answer.scores)}.")
        return
    chance = (
        f"The top score lies {z:.1f} standard deviations above the mean; 95 % of {null.directions} random directions "
        f"of equal norm stay below {null.threshold:.1f}."
    )
    above = int(above_chance(answer.scores, null).sum())
    if above:
        what = f"{above} training image{'s stand' if above > 1 else ' stands'} above chance"
        held = f" and above what 95 % of {null.heldout} held-out images give them" if null.heldout else ""
        st.success(f"{what}{held}. {chance}")
    else:
        usual = ""
        if z > null.threshold:
            usual = "But the held-out images give the same training images scores as high. "
        st.warning(f"**No clear source.** {chance} {usual}Read the ranking as weak evidence at most.")


@st.fragment
def timesteps(split: Split) -> None:
    """The scrubber: a band of timesteps, its ranking and its part of the scores."""
    marks = sorted(set(split.timesteps))
    if len(marks) < 2:
        st.info("There is a single timestep.")
        return
    first, last = st.select_slider("Timesteps", marks, (marks[0], marks[-1]), key="scrub",
                                   help="From nearly clean (0) to nearly pure noise (999).")  # fmt: skip
    chosen = [i for i, t in enumerate(split.timesteps) if first <= t <= last]
    part = split.scores[chosen].sum(0)
    st.caption(f"Ranked by timesteps {first} to {last} alone: {len(chosen)} of {len(split.names)} parts.")
    shown = top_scored(part, table, 6)
    gallery(tiles(shown, table), "proponent", "scrubbed")
    rows = [table.rows[s.record.id] for s in proponents[:6]]
    names = [s.record.caption or s.record.id for s in proponents[:6]]
    st.plotly_chart(split_bars(split, rows, names, [split.names[i] for i in chosen]), key="timestep_bars",
                    alt="The scores of the proponents, split by timestep")  # fmt: skip
    st.caption("The parts of a bar sum to the score of that image, exactly.")


def evidence() -> None:
    """By timestep, by block, and what is known of stability and hubs."""
    by_timestep, by_block, lists = st.tabs(["By timestep", "By block of the network", "Stability and hubs"])
    with by_timestep:
        try:
            timesteps(service.ask(run, setting, split_by_timestep))
        except DtrakError as reason:
            st.info(f"{reason.message} {reason.hint or ''}")
    with by_block:
        try:
            rows = tuple(table.rows[s.record.id] for s in proponents[:6])
            split = service.ask(run, setting, split_by_block, rows)
            names = [s.record.caption or s.record.id for s in proponents[:6]]
            st.plotly_chart(split_bars(split, range(len(rows)), names), key="block_bars",
                            alt="The scores of the proponents, split by block of the network")  # fmt: skip
            st.caption("The parts of a bar sum to the score of that image, exactly.")
        except DtrakError as reason:
            st.info(f"{reason.message} {reason.hint or ''}")
    with lists:
        if behind is None:
            st.info("Still being worked out; see above.")
        elif stable is None:
            st.info("Stability needs a method of one model whose timesteps are stored apart.")
        else:
            steady = sum(stable.share[table.rows[s.record.id]] >= STABLE for s in proponents)
            st.markdown(
                f"{steady} of the {len(proponents)} proponents shown stay in the top {stable.top} in at least "
                f"half of {stable.resamples} resamples: the query's timesteps drawn again, either half of the "
                "projection. The percentage on a tile is that share; the others are faded."
            )
        if hub is not None:
            count, digits = int(hub.marked.sum()), 1 if hub.expected > 0.001 else 3
            st.markdown(
                f"{count} training images are hubs: in the top {top} of more than {HUB_FACTOR:.0f} times as many "
                f"unrelated lists as chance gives ({percent(hub.expected, digits)}). They tell little about this image."
            )


def work_out_evidence() -> None:
    """Have worked out what stands behind a ranking of a large study, and say how far it is."""
    job = service.behind.job(run, setting, top)
    if job.state in ("failed", "cancelled"):
        if job.error:
            show_error(job.error)
        else:
            st.info("What chance gives was not worked out: cancelled.")
        if not st.button("Compute again", key="evidence-again"):
            return
        job = service.behind.job(run, setting, top, again=True)
    before = st.session_state.get("evidence_job")
    if before is not None and before is not job:
        queue_beside().drop(before)  # of a setting that this visitor has left
    st.session_state["evidence_job"] = job
    wait_for(job, "What chance gives, and how stable this ranking is:", "evidence-cancel", jobs=queue_beside())


def exports() -> None:
    """CSV, JSON and a page that stands alone, each written when it is asked for."""
    described = run.settings.as_dict() if run.settings else {"image": "uploaded", "label": run.label}
    name, study = f"{run.id}-{setting.text}", service.folder.study
    credit, measured = study.data.credit or "", service.reliability(setting, run).text
    columns = st.columns(3)
    columns[0].download_button("CSV", partial(to_csv, answer, stable), f"{name}.csv", "text/csv",
                               on_click="ignore", key="export-csv", width="stretch")  # fmt: skip
    columns[1].download_button(
        "JSON", partial(to_json, study.name, described, answer, null, stable, measured), f"{name}.json",
        "application/json", on_click="ignore", key="export-json", width="stretch",
    )  # fmt: skip
    columns[2].download_button(
        "Report (HTML)",
        partial(to_html, study.title or study.name, described, run.pixels, [answer], null, stable, credit,
                measured),
        f"{name}.html", "text/html", on_click="ignore", key="export-html", width="stretch",
    )  # fmt: skip


with right:
    try:
        if not features_or_wait(service, run, [setting], "attribution"):
            st.stop()
        answer = service.attribute(run, setting, top)
        behind = service.behind.evidence(run, setting, top)
    except DtrakError as error:
        show_error(error)
        st.stop()
    table = service.attributor.table
    st.markdown(
        f"Removing the **proponents** should change this image most, according to {method.title}; "
        "**opponents** pull the other way."
    )
    place = st.container()
    null, stable = (behind.null, behind.stable) if behind else (None, None)
    if behind:
        with place:
            verdict(answer, null)
    elif damp:
        st.caption("Hubs are damped once it is known what chance gives.")
    reliability_card(service, setting, run)
    hub = None if null is None else hubs(null, top)
    groups = service.duplicates if collapse else None
    answer = answer.merged(groups)
    if damp and null is not None:
        answer = answer.rescored(damp_hubs(answer.scores, null), "z-score")
        null = None  # it belongs to the method's own scores
    badges = evidence_badges(table, stable, hub, groups)
    st.subheader("Proponents")
    proponents = answer.proponents
    gallery(
        tiles(proponents, table, badges, unstable(table, stable) if stable and not damp else ()),
        "proponent",
        "proponents",
    )
    if stable is not None:
        st.caption(
            f"The percentage on a tile: in how many of {stable.resamples} resamples the image stays in the top "
            f"{stable.top}; what stays in fewer than half is faded."
        )
    opponents = answer.opponents
    if opponents:
        st.subheader("Opponents")
        gallery(tiles(opponents, table), "opponent", "opponents")
    st.subheader("Evidence")
    evidence()
    if behind:
        exports()
    else:
        st.caption("Exports follow when it is known what chance gives.")
    st.subheader("What if")
    st.fragment(what_if)(service, run, answer)
    st.subheader("All scores")
    st.plotly_chart(
        score_histogram(answer, null), key="histogram", alt="Histogram of the scores of all training images"
    )
    records = table.records[: table.train_size]
    shaded = "" if null is None else "Shaded: where the top of 95 % of random directions stays below. "
    mass = f"Positive mass is spread over the equivalent of {effective_number(answer.scores):.0f} images."
    st.caption(shaded + mass)
    for title, key in (("By creator", "creator"), ("By class", "label")):
        st.subheader(title)
        found = shares(list(records), answer.scores, key)
        st.plotly_chart(share_bars(found), key=f"shares-{key}", alt=f"Shares of positive mass, {title.lower()}")
    st.caption(
        f"Shares are of the positive mass only, never of the image. Fingerprint {answer.fingerprint}. "
        f"{service.folder.study.data.credit or ''}"
    )
    if behind is None:  # last, so that it takes no time from the page
        with place:
            work_out_evidence()
