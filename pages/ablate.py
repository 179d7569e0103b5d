"""Flip each design choice of the paper and see what it does to the ranking of one picture."""

import time

import streamlit as st

from dtrak.compare import agreement
from dtrak.costs import read_costs
from dtrak.errors import DtrakError
from dtrak.methods import METHODS
from dtrak.settings import AUTO, Setting
from dtrak.ui.ablate import POWERS, choices, damping_curve, setting_cost, with_checkpoint
from dtrak.ui.figures import damping_figure
from dtrak.ui.services import all_scores, used_damping
from dtrak.ui.views import change_badges, default_power, enlarged_png, tiles, top_scored
from pages_ui import choose_run, current_service, features_or_wait, gallery, hand_over_to_app, show_error

SHOWN = 12
AS_METHOD = "the method's"

hand_over_to_app()
st.title("Ablate")
service = current_service()
attributor, table = service.attributor, service.attributor.table
run = choose_run(service)
if run is None:
    st.stop()
methods = [m for m in attributor.methods() if m.family == "gradient" and m.models == "one" and not m.trajectory]
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


def chosen_setting() -> Setting:
    """The toggles, and the setting that they make."""
    titles = {m.name: m.title for m in methods}
    name = st.selectbox("Method", list(titles), format_func=titles.get, key="ablate_method")
    method, setting = METHODS[name], Setting(name)
    checkpoint = pick("Checkpoint", choices(attributor, setting).checkpoints, "ablate_checkpoint", "last")
    setting = with_checkpoint(attributor, setting, checkpoint or "last")
    offered = choices(attributor, setting)
    if not method.residual:
        output = pick(
            "Output function", offered.outputs, "ablate_output", method.output, help="f of the predicted noise."
        )
        setting = setting.with_(output=None if output == method.output else output)
    strategy = pick("Timesteps are", choices(attributor, setting).strategies, "ablate_strategy", "uniform",
                    format_func={"uniform": "spread over all", "cumulative": "the first ones"}.get)  # fmt: skip
    setting = setting.with_(strategy=strategy or "uniform")
    if strategy == "cumulative":
        setting = setting.with_(timesteps=5)
    counts = choices(attributor, setting).timesteps
    setting = setting.with_(timesteps=pick("K, timesteps", counts, "ablate_timesteps", counts[-1] if counts else None))
    setting = setting.with_(draws=pick("Noise draws", choices(attributor, setting).draws, "ablate_draws", 1) or 1)
    seeds = choices(attributor, setting).projection_seeds
    setting = setting.with_(projection_seed=pick("Projection seed", seeds, "ablate_seed", 0) or 0)
    (side,) = attributor.sides(setting)
    stored = side.sources[0].config.projection_dim
    dims = [d for d in offered.projection_dims if d < stored] + [stored]
    dim = st.select_slider("k, projected numbers", dims, dims[-1], key=f"ablate_dim_{stored}")
    setting = setting.with_(projection_dim=None if dim == stored else dim)
    if method.damping is not None:
        if st.toggle("λ auto", key="ablate_auto", help="The λ under which half of the kernel's directions count."):
            setting = setting.with_(damping=AUTO)
        else:
            power = st.slider(
                "λ, power of ten", -4.0, 4.0, default_power(method.damping), 0.05, key=f"ablate_power_{name}",
                help="Relative to the kernel's mean eigenvalue.",
            )  # fmt: skip
            setting = setting.with_(damping=float(f"{10**power:.4g}"))
    normalisers = [AS_METHOD, "none", "norm", "cosine", *(["influence"] if method.damping is not None else [])]
    normaliser = st.selectbox("Divide scores by", normalisers, key="ablate_normaliser",
                              format_func=lambda n: {"none": "nothing", "norm": "‖φₙ‖", "cosine": "‖φₙ‖ ‖φ(x)‖",
                                                     "influence": "‖(ΦᵀΦ+λI)⁻¹φₙ‖"}.get(n, n))  # fmt: skip
    if normaliser != AS_METHOD:
        setting = setting.with_(normaliser=normaliser)
    if offered.missing:
        st.caption(
            f"Not stored here: {', '.join(dict.fromkeys(offered.missing))}. List them under ablations and build."
        )
    return setting


def pins() -> list[str]:
    """Settings sent to Compare, kept in the URL."""
    return [text for text in st.query_params.get("pins", "").split(";") if text]


def metrics(scores, setting: Setting) -> None:  # type: ignore[no-untyped-def]
    """How alike this ranking is to the previous setting's and to the pinned one's."""
    before = st.session_state.get("ablate_before")
    columns = st.columns(4)
    if before and before[0] == run.id:
        found = agreement(before[2], scores)
        columns[0].metric("Overlap@10 with previous", f"{found.overlap:.0%}", help=Setting.parse(before[1]).title)
        columns[1].metric(
            "Rank-biased overlap", f"{found.rank_biased_overlap:.2f}", help="Of whole rankings; 1 is equal."
        )
    if pins():
        pinned = Setting.parse(pins()[-1])
        other = service.ask(run, pinned, all_scores)
        if other is not None:
            found = agreement(other, scores)
            columns[2].metric("Overlap@10 with pinned", f"{found.overlap:.0%}", help=pinned.title)
    cost = setting_cost(attributor, setting, read_costs(service.folder))
    took = "" if cost.seconds is None else f" · {cost.seconds:.0f} s"
    columns[3].metric("Cost", f"{cost.megabytes:.0f} MB{took}", help="Disk and build time of the features behind this; "
                      f"a query takes {cost.passes} passes of the network.")  # fmt: skip


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
            scores = service.ask(run, setting, all_scores)
            elapsed = time.perf_counter() - start
            shown = st.session_state.get("ablate_now")
            if shown and shown[:2] != (run.id, setting.text):
                st.session_state["ablate_before"] = shown
            st.session_state["ablate_now"] = (run.id, setting.text, scores)
            before = st.session_state.get("ablate_before")
            badges = change_badges(before[2], scores, table, SHOWN) if before and before[0] == run.id else {}
            st.markdown(f"**{setting.title}**")
            gallery(tiles(top_scored(scores, table, SHOWN), table, badges), "proponent", "ablate_gallery")
            metrics(scores, setting)
            if st.button("Pin to Compare", key="pin", icon="📌"):
                st.query_params["pins"] = ";".join(dict.fromkeys([*pins(), setting.text]))
            if pins():
                st.caption("Pinned: " + " | ".join(Setting.parse(text).title for text in pins()))
                wanted = {"run": run.id, "lanes": ";".join(pins()[-4:] if len(pins()) > 1 else [*pins(), "trak"])}
                st.page_link("pages/compare.py", label="Compare the pinned settings", query_params=wanted)
            st.caption(f"Ranked {len(scores)} images in {elapsed * 1e3:.0f} ms. "
                       "LDS: no ground truth is built for this study yet.")  # fmt: skip
            if METHODS[setting.method].damping is not None:
                st.markdown("**Does λ matter here?** Likeness of the ranking at each λ to the one above.")
                curve = service.ask(run, setting, damping_curve)
                current = service.ask(run, setting, used_damping)
                st.plotly_chart(damping_figure(list(POWERS), curve, current), key="damping_curve",
                                alt="Rank stability over the damping")  # fmt: skip
    except DtrakError as error:
        show_error(error)


lab()
