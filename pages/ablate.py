"""Change each design choice of the paper and see how the ranking of one image changes."""

import math
import time
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dtrak.analysis.comparison import Ranked, agreement
from dtrak.app.ablate import POWERS, damping_curve, setting_cost
from dtrak.app.elements import explain, plain
from dtrak.app.evaluate import baseline_text
from dtrak.app.figures import damping_figure
from dtrak.app.sections.multiples import multiples_section
from dtrak.app.sections.trust import reliability_card
from dtrak.app.service import LISTED, ranking
from dtrak.app.views import change_badges, damping_text, default_power, tiles
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
from dtrak.methods.choices import CHOICES, changed, offer
from dtrak.methods.influence import GradientMethod
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import AUTO, Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url
from dtrak.utils.text import percent

SHOWN = 12
CURVE_AT_ONCE = 600  # training images; above, the λ curve is plotted on request
POWER_STEPS = [i / 20 for i in range(-80, 81)]  # log₁₀ λ
Shown = tuple[tuple[str, str, str], str, Ranked]  # study, data and run; setting; ranking

missing: list[str] = []  # values for which no features are stored

hand_over_to_app()
st.title("Ablate")
service = current_service()
attributor, table = service.attributor, service.attributor.table
chosen_run = choose_run(service)
if chosen_run is None:
    st.stop()
run = chosen_run
methods = {m.name: m for m in attributor.methods() if isinstance(m, GradientMethod) and m.one_model and m.light}
subject = (service.folder.study.name, table.fingerprint(), run.id)
if not methods:
    st.info("No gradient features are built. In a terminal:")
    st.code(f"python -m index_builder build {service.folder.study.name}", language=None)
    st.stop()


def pick(label: str, options: list[Any], key: str, default: Any = None, **more: Any) -> Any:
    """A select box, shown only for two or more options; a stored value that is no longer an option is dropped."""
    if len(options) < 2:
        return options[0] if options else default
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    index = options.index(default) if default in options else 0
    return st.selectbox(label, options, index, key=key, **more)


def toggle(setting: Setting, name: str, default: Any = None) -> Setting:
    """Choose among the stored values of one choice; returns the changed setting."""
    choice, offered = CHOICES[name], offer(attributor, setting, name)
    missing.extend(f"{choice.label}: {choice.shown(value)}" for value in offered.missing)
    default = choice.default if default is None else default
    value = pick(choice.label, offered.values, f"ablate_{name}", default, help=choice.help, format_func=choice.shown)
    return changed(attributor, setting, name, value) or setting


def chosen_setting() -> Setting:
    """Show the toggles; returns the setting they make."""
    missing.clear()
    name = st.selectbox("Method", list(methods), format_func=lambda n: methods[n].title, key="ablate_method")
    method, setting = methods[name], Setting(name)
    setting = toggle(setting, "checkpoint")
    if not method.residual:
        setting = toggle(setting, "output", method.output)
    setting = toggle(setting, "strategy")
    (side,) = attributor.sides(setting)
    setting = toggle(setting, "timesteps", len(side.pairs) // setting.draws)
    setting = toggle(setting, "draws")
    setting = toggle(setting, "projection_seed")
    (side,) = attributor.sides(setting)
    dims = offer(attributor, setting, "projection_dim").values
    if st.session_state.get("ablate_projection_dim") not in dims:
        st.session_state["ablate_projection_dim"] = dims[-1]
    label = CHOICES["projection_dim"].label
    dim = st.select_slider(label, dims, key="ablate_projection_dim") if len(dims) > 1 else dims[0]
    setting = setting.with_(projection_dim=None if dim == dims[-1] else dim)
    if method.damping is not None:
        if st.toggle("λ auto", key="ablate_auto", help="The λ at which half of the kernel's directions contribute."):
            setting = setting.with_(damping=AUTO)
        else:
            choice, key = CHOICES["damping"], f"ablate_power_{name}"
            default = default_power(method.damping)
            power = st.select_slider(
                choice.label, POWER_STEPS, default, format_func=damping_text, key=key, help=choice.help
            )
            setting = setting.with_(damping=float(f"{10**power:.4g}"))
    choice = CHOICES["normaliser"]
    kinds = [n for n in choice.values or {} if n != "influence" or method.damping is not None]
    normaliser: Any = st.selectbox(
        choice.label, kinds, kinds.index(method.normaliser), format_func=choice.shown, key=f"ablate_norm_{name}",
        help=choice.help,
    )  # fmt: skip
    if normaliser != method.normaliser:
        setting = setting.with_(normaliser=normaliser)
    if missing:
        with st.expander("Not available"):
            st.caption(plain("; ".join(missing)) + ". To add them, list feature sets under `ablations` and build.")
    if setting.output == method.output:
        setting = setting.with_(output=None)
    return setting


def restore() -> None:
    """Set the toggles from the URL, once."""
    text = st.query_params.get("setting")
    if not text or ("ablate_method" in st.session_state and st.session_state.get("ablate_restored") == text):
        return
    st.session_state["ablate_restored"] = text
    try:
        setting = Setting.parse(text)
    except DtrakError as error:
        st.warning(explain(error))
        return
    if setting.method not in methods:
        st.warning(f"{METHODS[setting.method].title} is not available on this page.")
        return
    values: dict[str, Any] = {
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


def previous(known: Ranked) -> Shown | None:
    """The previous ranking, if it is of the same image in the same study."""
    before: Shown | None = st.session_state.get("ablate_before")
    return before if before and before[0] == subject and before[2].total == known.total else None


def metrics(known: Ranked, setting: Setting, pinned: list[Setting]) -> None:
    """Show the LDS, the agreement with the previous and the pinned setting's rankings, and the cost."""
    before = previous(known)
    columns = st.columns(4)
    lds = measured(setting, columns[0])
    if before is not None:
        found = agreement(before[2], known)
        columns[1].metric("Overlap with previous", percent(found.overlap), help=plain(Setting.parse(before[1]).title))
        columns[2].metric(
            "RBO with previous", f"{found.rank_biased_overlap:.2f}", help="Rank-biased overlap; 1: equal."
        )
    if pinned:
        other = service.ask(run, pinned[-1], ranking, LISTED)
        if other is not None:
            found = agreement(Ranked.found(other), known)
            columns[3].metric("Overlap with pinned", percent(found.overlap), help=plain(pinned[-1].title))
    cost = setting_cost(attributor, setting, read_costs(service.folder))
    took = "" if cost.seconds is None else f", built in {cost.seconds:.0f} s"
    st.caption(
        f"{lds}Cost: {cost.megabytes:.0f} MB of features on disk{took}; a query takes {cost.passes} network passes. "
        "Overlap: share of the top 10 that both rankings have. RBO: rank-biased overlap of the whole rankings, which "
        "weights the first ranks most."
    )
    if lds:
        st.page_link("pages/evaluate.py", label="How the LDS was measured")


def measured(setting: Setting, place: DeltaGenerator) -> str:
    """Show the LDS of exactly this setting, and its change; returns what stands behind it, empty if not measured."""
    kind = "generated" if run.settings is not None else "held-out"
    start = time.perf_counter()
    score = service.lds_now(setting, kind)
    took = time.perf_counter() - start
    if score is None:
        reliability_card(service, setting, run)
        name = service.folder.study.name
        st.caption(f"To see the LDS of each setting: python -m index_builder evaluate {name}")
        return ""
    before = st.session_state.get("ablate_lds")
    if before and before[:2] != (subject, setting.text):
        st.session_state["ablate_lds_before"] = before
    st.session_state["ablate_lds"] = (subject, setting.text, score.mean)
    old = st.session_state.get("ablate_lds_before")
    delta = f"{100 * (score.mean - old[2]):+.1f}" if old and old[0] == subject else None
    help_text = "Rank correlation × 100 between predicted and measured losses of retrained models."
    place.metric("LDS of this setting", f"{100 * score.mean:.1f}", delta, help=help_text)
    weak = " Not significantly better than chance." if score.low <= 0 else ""
    simple = baseline_text(service.evaluation, kind)
    return (
        f"LDS: 95 % {100 * score.low:.1f} to {100 * score.high:.1f}, on {kind} images, against {score.subsets} "
        f"retrained models, at this λ.{weak}{simple} Choosing λ by this number is optimistic; Evaluate reports "
        f"cross-fitted λ. Computed in {took * 1e3:.0f} ms. "
    )


@st.fragment
def lab() -> None:
    """Show the toggles and the ranking; only this fragment reruns when a toggle changes."""
    left, right = st.columns([1, 3], gap="large")
    try:
        with left:
            st.image(data_url(run.pixels, 160), width=160, alt=f"The query: {run.title}")
            setting = chosen_setting()
        with right:
            if not features_or_wait(service, run, [setting], "ablate"):
                return
            start = time.perf_counter()
            answer = service.answer(run, setting, ranking, LISTED)
            elapsed = time.perf_counter() - start
            shown = st.session_state.get("ablate_now")
            if shown and shown[:2] != (subject, setting.text):
                st.session_state["ablate_before"] = shown
            known = Ranked.found(answer)
            st.session_state["ablate_now"] = (subject, setting.text, known)
            st.query_params["setting"] = st.session_state["ablate_restored"] = setting.text
            before = previous(known)
            badges = change_badges(before[2], known, table, SHOWN) if before is not None else {}
            st.markdown(f"**{plain(setting.title)}**")
            pinned = settings_of("pins", service)
            metrics(known, setting, pinned)
            gallery(tiles(answer.listing(SHOWN), table, badges), "proponent", "ablate_gallery")
            if st.button("Pin to Compare", key="pin"):
                pinned = [s for s in pinned if s != setting] + [setting]
                st.query_params["pins"] = ";".join(s.text for s in pinned)
            if pinned:
                st.caption("Pinned: " + " | ".join(plain(s.title) for s in pinned))
                texts = [s.text for s in pinned]
                shown_lanes = texts[-4:] if len(texts) > 1 else [*texts, "trak"]
                wanted = {"run": run.id, "lanes": ";".join(shown_lanes), "pins": ";".join(texts)}
                st.page_link("pages/compare.py", label="Compare the pinned settings", query_params=wanted)
            st.caption(f"{'Searched' if answer.large else 'Ranked'} {known.total:,} images in {elapsed * 1e3:.1f} ms.")
            multiples_section(service, run, setting)
            if METHODS[setting.method].damping is not None:
                st.markdown("**Sensitivity to λ.** Rank-biased overlap of the ranking at each λ with the one above.")
                large = known.total > CURVE_AT_ONCE
                if not large or st.button("Plot the curve", help="Takes an eigendecomposition: some seconds."):
                    curve = service.answer(run, setting, damping_curve)
                    figure = damping_figure(list(POWERS), curve, answer.damping)
                    st.plotly_chart(figure, key="damping_curve", alt="Rank-biased overlap by λ")
    except DtrakError as error:
        show_error(error)


restore()
lab()
