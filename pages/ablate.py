"""Flip each design choice of the paper and see what it does to the ranking of one picture."""

import math
import time

import streamlit as st

from dtrak.analysis.comparison import agreement
from dtrak.app.ablate import POWERS, damping_curve, setting_cost
from dtrak.app.figures import damping_figure
from dtrak.app.service import all_scores
from dtrak.app.trust import reliability_card
from dtrak.app.views import change_badges, default_power, tiles
from dtrak.app.widgets import (
    choose_run,
    current_service,
    features_or_wait,
    gallery,
    hand_over_to_app,
    settings_of,
    show_error,
)
from dtrak.build.costs import read_costs
from dtrak.config import LAST
from dtrak.methods.choices import changed, offer
from dtrak.methods.influence import GradientMethod
from dtrak.methods.ranking import top_scored
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import AUTO, Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import enlarged_png
from dtrak.utils.text import percent

SHOWN = 12
CURVE_AT_ONCE = 600  # images; above, the λ curve waits for a click

missing: list[str] = []  # what the toggles cannot offer here

hand_over_to_app()
st.title("Ablate")
service = current_service()
attributor, table = service.attributor, service.attributor.table
run = choose_run(service)
if run is None:
    st.stop()
methods = [m for m in attributor.methods() if isinstance(m, GradientMethod) and m.one_model and m.light]
whose = (service.folder.study.name, table.fingerprint(), run.id)
if not methods:
    st.info("No gradient features are built.")
    st.code(f"python -m index_builder build {service.folder.study.name}", language=None)
    st.stop()


def pick(label: str, options: list, key: str, default=None, **more):  # type: ignore[no-untyped-def]
    """A choice that is only offered where there is one, and that forgets what is no longer possible."""
    if len(options) < 2:
        return options[0] if options else default
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    index = options.index(default) if default in options else 0
    return st.selectbox(label, options, index, key=key, **more)


def toggle(setting: Setting, choice: str, label: str, default, **more):  # type: ignore[no-untyped-def]
    """One choice among what is stored; gives the setting with it."""
    offered = offer(attributor, setting, choice)
    missing.extend(f"{label}: {value}" for value in offered.missing)
    value = pick(label, offered.values, f"ablate_{choice}", default, **more)
    return changed(attributor, setting, choice, value) or setting


def chosen_setting() -> Setting:
    """The toggles, and the setting that they make."""
    missing.clear()
    titles = {m.name: m.title for m in methods}
    name = st.selectbox("Method", list(titles), format_func=titles.get, key="ablate_method")
    method, setting = METHODS[name], Setting(name)
    setting = toggle(setting, "checkpoint", "Checkpoint", LAST)
    if not method.residual:
        setting = toggle(setting, "output", "Output function", method.output, help="f of the predicted noise.")
    spread = {"uniform": "spread over all", "cumulative": "the first ones"}
    setting = toggle(setting, "strategy", "Timesteps are", "uniform", format_func=spread.get)
    (side,) = attributor.sides(setting)
    setting = toggle(setting, "timesteps", "K, timesteps", len(side.pairs) // setting.draws)
    setting = toggle(setting, "draws", "Noise draws", 1)
    setting = toggle(setting, "projection_seed", "Projection seed", 0)
    (side,) = attributor.sides(setting)
    dims = offer(attributor, setting, "projection_dim").values
    if st.session_state.get("ablate_projection_dim") not in dims:
        st.session_state["ablate_projection_dim"] = dims[-1]
    dim = st.select_slider("k, projected numbers", dims, key="ablate_projection_dim") if len(dims) > 1 else dims[0]
    setting = setting.with_(projection_dim=None if dim == dims[-1] else dim)
    if method.damping is not None:
        if st.toggle("λ auto", key="ablate_auto", help="The λ under which half of the kernel's directions count."):
            setting = setting.with_(damping=AUTO)
        else:
            help_text = "Relative to the kernel's mean eigenvalue."
            default, key = default_power(method.damping), f"ablate_power_{name}"
            power = st.slider("λ, power of ten", -4.0, 4.0, default, 0.05, key=key, help=help_text)
            setting = setting.with_(damping=float(f"{10**power:.4g}"))
    names = {"none": "nothing", "norm": "‖φₙ‖", "cosine": "‖φₙ‖ ‖φ(x)‖", "influence": "‖(ΦᵀΦ+λI)⁻¹φₙ‖"}
    kinds = [n for n in names if n != "influence" or method.damping is not None]
    normaliser = st.selectbox(
        "Divide scores by", kinds, kinds.index(method.normaliser), format_func=names.get, key=f"ablate_norm_{name}"
    )
    if normaliser != method.normaliser:
        setting = setting.with_(normaliser=normaliser)
    if missing:
        with st.expander("Not stored here"):
            st.caption("; ".join(missing) + ". List feature sets for them under ablations and build.")
    if setting.output == method.output:
        setting = setting.with_(output=None)
    return setting


def restore() -> None:
    """Put the setting of a copied link into the toggles, once."""
    text = st.query_params.get("setting")
    if not text or ("ablate_method" in st.session_state and st.session_state.get("ablate_restored") == text):
        return
    st.session_state["ablate_restored"] = text
    try:
        setting = Setting.parse(text)
    except DtrakError as error:
        st.warning(f"{error.message} {error.hint or ''}")
        return
    if setting.method not in [m.name for m in methods]:
        st.warning(f"{METHODS[setting.method].title} is not among the methods of this page.")
        return
    values = {
        "method": setting.method,
        "checkpoint": setting.checkpoint,
        "output": setting.output or METHODS[setting.method].output,
        "strategy": setting.strategy,
        "timesteps": setting.timesteps,
        "draws": setting.draws,
        "projection_seed": setting.projection_seed,
        "projection_dim": setting.projection_dim,
        f"norm_{setting.method}": setting.normaliser or METHODS[setting.method].normaliser,
        "auto": setting.damping == AUTO,
    }
    if isinstance(setting.damping, float):
        values[f"power_{setting.method}"] = min(4.0, max(-4.0, round(math.log10(setting.damping) * 20) / 20))
    st.session_state.update({f"ablate_{name}": value for name, value in values.items() if value is not None})


def comparable(before, scores) -> bool:  # type: ignore[no-untyped-def]
    """Whether an earlier ranking is of this picture in this study as it is."""
    return bool(before) and before[0] == whose and len(before[2]) == len(scores)


def metrics(scores, setting: Setting, pinned: list[Setting]) -> None:  # type: ignore[no-untyped-def]
    """How alike this ranking is to the previous setting's and to the pinned one's."""
    before = st.session_state.get("ablate_before")
    columns = st.columns(4)
    if comparable(before, scores):
        found = agreement(before[2], scores)
        columns[1].metric("Overlap, previous", percent(found.overlap), help=Setting.parse(before[1]).title)
        columns[2].metric("RBO, previous", f"{found.rank_biased_overlap:.2f}", help="Of whole rankings; 1 is equal.")
    if pinned:
        other = service.ask(run, pinned[-1], all_scores)
        if other is not None:
            found = agreement(other[0], scores)
            columns[3].metric("Overlap, pinned", percent(found.overlap), help=pinned[-1].title)
    cost = setting_cost(attributor, setting, read_costs(service.folder))
    took = "" if cost.seconds is None else f", built in {cost.seconds:.0f} s"
    help_text = f"Features on disk{took}. A query takes {cost.passes} passes of the network."
    columns[0].metric("Cost", f"{cost.megabytes:.0f} MB", help=help_text)
    st.caption(
        "Overlap: the share of the top 10 that both rankings have. RBO, rank-biased overlap: of whole rankings, the "
        f"first places most. Cost: {help_text}"
    )


def measured(setting: Setting) -> None:
    """The LDS of exactly this setting, and how it moved."""
    kind = "generated" if run.settings is not None else "held-out"
    start = time.perf_counter()
    score = service.lds_now(setting, kind)
    took = time.perf_counter() - start
    if score is None:
        reliability_card(service, setting, run)
        name = service.folder.study.name
        st.caption(f"To see the LDS move with the toggles: python -m index_builder evaluate {name}")
        return
    before = st.session_state.get("ablate_lds")
    if before and before[:2] != (whose, setting.text):
        st.session_state["ablate_lds_before"] = before
    st.session_state["ablate_lds"] = (whose, setting.text, score.mean)
    old = st.session_state.get("ablate_lds_before")
    delta = f"{100 * (score.mean - old[2]):+.1f}" if old and old[0] == whose else None
    columns = st.columns([1, 3])
    help_text = "Rank correlation × 100 of what the scores predict and what retrained models lose."
    columns[0].metric("LDS of this setting", f"{100 * score.mean:.1f}", delta, help=help_text)
    weak = " The interval reaches zero." if score.low <= 0 else ""
    columns[1].caption(
        f"95 %: {100 * score.low:.1f} to {100 * score.high:.1f}, on {kind} images, against {score.subsets} retrained "
        f"models, at this λ.{weak} Choosing λ by this number flatters it; Evaluate shows cross-fitted ones. "
        f"Worked out in {took * 1e3:.0f} ms."
    )
    columns[1].page_link("pages/evaluate.py", label="How this was measured")


@st.fragment
def lab() -> None:
    """Toggles and ranking; runs alone when a toggle moves."""
    left, right = st.columns([1, 3], gap="large")
    try:
        with left:
            st.image(enlarged_png(run.pixels, 160), width=160, alt=f"The query: {run.title}")
            setting = chosen_setting()
        with right:
            if not features_or_wait(service, run, [setting], "ablate"):
                return
            start = time.perf_counter()
            scores, damping = service.ask(run, setting, all_scores)
            elapsed = time.perf_counter() - start
            shown = st.session_state.get("ablate_now")
            if shown and shown[:2] != (whose, setting.text):
                st.session_state["ablate_before"] = shown
            st.session_state["ablate_now"] = (whose, setting.text, scores)
            st.query_params["setting"] = st.session_state["ablate_restored"] = setting.text
            before = st.session_state.get("ablate_before")
            badges = change_badges(before[2], scores, table, SHOWN) if comparable(before, scores) else {}
            st.markdown(f"**{setting.title}**")
            pinned = settings_of("pins", service)
            metrics(scores, setting, pinned)
            measured(setting)
            gallery(tiles(top_scored(scores, table, SHOWN), table, badges), "proponent", "ablate_gallery")
            if st.button("Pin to Compare", key="pin"):
                pinned = [s for s in pinned if s != setting] + [setting]
                st.query_params["pins"] = ";".join(s.text for s in pinned)
            if pinned:
                st.caption("Pinned: " + " | ".join(s.title for s in pinned))
                texts = [s.text for s in pinned]
                shown_lanes = texts[-4:] if len(texts) > 1 else [*texts, "trak"]
                wanted = {"run": run.id, "lanes": ";".join(shown_lanes), "pins": ";".join(texts)}
                st.page_link("pages/compare.py", label="Compare the pinned settings", query_params=wanted)
            st.caption(f"Ranked {len(scores)} images in {elapsed * 1e3:.1f} ms.")
            if METHODS[setting.method].damping is not None:
                st.markdown("**Does λ matter here?** Likeness of the ranking at each λ to the one above.")
                large = len(scores) > CURVE_AT_ONCE
                if not large or st.button("Draw the curve", help="Takes an eigendecomposition: some seconds."):
                    curve = service.ask(run, setting, damping_curve)
                    figure = damping_figure(list(POWERS), curve, damping)
                    st.plotly_chart(figure, key="damping_curve", alt="Rank stability over the damping")
    except DtrakError as error:
        show_error(error)


restore()
lab()
