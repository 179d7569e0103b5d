"""How well each method predicts retraining: measured in this study, and as published."""

import streamlit as st

from dtrak.app.evaluate import (
    CHOICES,
    DATASETS,
    best,
    control_rows,
    curves,
    effect,
    interval_text,
    published,
    removal_means,
    removal_values,
    table_rows,
    verdict,
)
from dtrak.app.figures import NEUTRAL, distance_boxes, lds_bars, lds_curves
from dtrak.app.widgets import current_service, hand_over_to_app
from dtrak.evaluation.counterfactual import COMPARED, Counterfactuals
from dtrak.evaluation.results import POWERS, Evaluation
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.images import enlarged_png

KINDS = {"generated": "Generated images", "held-out": "Held-out images"}

hand_over_to_app()
st.title("Evaluate")
service = current_service()
study = service.folder.study
evaluation, effects = service.evaluation, service.counterfactuals
st.markdown(
    "An attribution needs to be tested. Here the model is retrained on random halves of the training images, and each "
    "method predicts how well those models do on some images. The **LDS** (linear datamodeling score) is the rank "
    "correlation between prediction and ground truth, × 100: 0 is chance, 100 is perfect."
)


def commands() -> None:
    """Show the commands that produce the numbers."""
    name = study.name
    st.code(
        f"python -m index_builder retrain {name}\npython -m index_builder evaluate {name}\n"
        f"python -m index_builder counterfactual {name} --queries 16",
        language=None,
    )


def provenance(found: Evaluation) -> None:
    """Show what the numbers are based on, and what has changed since."""
    numbers = found.behind
    seeds = f"{numbers['seeds']} training seed{'s' if numbers['seeds'] > 1 else ''} each"
    st.caption(
        f"Based on {numbers['subset_models']} subset models, {seeds} ({numbers['trainings']} trainings of "
        f"{numbers['steps']} steps, {numbers['precision']}); queries: {numbers['held-out']} held-out and "
        f"{numbers['generated']} generated images; losses over {len(numbers['timesteps'])} timesteps, "
        f"{numbers['noise_draws']} noise draw each. Measured {numbers['measured']}."
    )
    if numbers["subset_models"] < 64:
        st.warning(f"Only {numbers['subset_models']} subset models; 64 are usual. Intervals are wide.")
    if numbers["fitted"]:
        st.caption(f"Empirical influence and Datamodel were fitted to {numbers['fitted']} other subset models.")
    if found.stale:
        st.warning(f"{found.stale.capitalize()}.")


def methods(found: Evaluation, queries: str) -> None:
    """Show the LDS of each method and the negative controls."""
    st.subheader("Methods")
    st.markdown(f"{verdict(found, queries)} {best(found, queries)}")
    rows = found.own(queries)
    st.plotly_chart(
        lds_bars(
            [METHODS[r.method].title for r in rows], [100 * r.lds_crossfit for r in rows],
            [100 * r.interval[0] for r in rows], [100 * r.interval[1] for r in rows],
            [100 * r.lds_oracle for r in rows],
        ),
        key="lds_bars", alt="The LDS of each method with its interval",
    )  # fmt: skip
    st.caption(
        "Bars: cross-fitted λ, chosen on half of the subset models and evaluated on the other half, both ways. Lines: "
        "95 % bootstrap interval over the subset models. Grey: the interval includes zero. Diamonds: oracle λ, best on "
        "the same models it is reported on, as in the literature; it is optimistic."
    )
    with st.expander("As a table"):
        st.dataframe(table_rows(rows), hide_index=True, key="lds_table")
        st.caption("LDS × 100. 'over TRAK': difference to TRAK on the same resamples.")
    controls = control_rows(found, queries)
    if controls:
        words = [f"{Setting.parse(r.setting).title} {interval_text(r)}" for r in controls]
        st.markdown(
            f"**Negative controls.** Expected near zero: {'; '.join(words)}. Randomised: the same network with all "
            "weights shuffled, for training images and queries."
        )
        if any(r.interval[0] > 0 for r in controls):
            st.warning(
                "A negative control is above zero: part of the predictions comes from image similarity that any such "
                "network shows, not from what this one has learned."
            )


def ablations(found: Evaluation, queries: str) -> None:
    """Show the LDS over the values of each choice."""
    st.subheader("Ablations")
    offered = {name: c.label for name, c in CHOICES.items() if curves(found, name, queries, POWERS)}
    if not offered:
        st.caption("No ablation was measured.")
        return
    choice = st.segmented_control(
        "Choice", list(offered), format_func=offered.__getitem__, default=next(iter(offered)), required=True,
        key="ablation", bind="query-params",
    )  # fmt: skip
    shown = curves(found, choice, queries, POWERS)
    if choice == "damping":
        names = st.multiselect("Methods", [c.name for c in shown], [c.name for c in shown[:2]], key="curve_methods",
                               max_selections=4)  # fmt: skip
        shown = [c for c in shown if c.name in names]
    logarithmic = choice in ("damping", "timesteps", "projection_dim")
    figure = lds_curves(shown, offered[choice], logarithmic, ordered=logarithmic or choice == "checkpoint")
    st.plotly_chart(figure, key="lds_curves", alt=f"LDS by {offered[choice]}")
    st.caption(CHOICES[choice].note)


def removals(found: Counterfactuals) -> None:
    """Show how generated images change when their top training images are removed."""
    numbers = found.behind
    total = service.attributor.table.train_size
    st.markdown(
        f"For {numbers['queries']} generated images, each method's top {numbers['removed']} of {total} training images "
        "are removed, the model is retrained from the same seed, and the image is regenerated from the same noise. The "
        "more the image changes, the more those training images mattered."
    )
    st.markdown(effect(found))
    st.dataframe(removal_means(found), hide_index=True, key="counterfactual_means")
    left, right = st.columns(2)
    titles = {name: METHODS[name].title for name in COMPARED}
    left.plotly_chart(
        distance_boxes(removal_values(found, "distance"), "ℓ2 of pixels"), key="l2_boxes",
        alt="Pixel distance between the images before and after removal, by method",
    )  # fmt: skip
    right.plotly_chart(
        distance_boxes(removal_values(found, "cosine"), "embedding cosine"), key="cosine_boxes",
        alt="Embedding cosine between the images before and after removal, by method",
    )  # fmt: skip
    query = found.queries[0]
    if len(found.queries) > 1:
        query = st.select_slider("Image", found.queries, key="counterfactual_query")
    columns = st.columns(1 + len(COMPARED))
    columns[0].image(enlarged_png(found.before(query), 160), width="stretch", alt="With all images")
    columns[0].markdown("**With all images**")
    for column, name in zip(columns[1:], COMPARED, strict=True):
        pair = next(p for p in found.of(name) if p.query == query)
        title = "Random" if name == "random" else f"Top {pair.removed} of {titles[name]}"
        column.image(enlarged_png(found.picture(pair.after[0]), 160), width="stretch", alt=f"Without: {title}")
        mean = f", mean of {len(pair.after)} sets" if len(pair.after) > 1 else ""
        column.markdown(f"**Without: {title}**  \nℓ2 {pair.distance:.1f}, cosine {pair.cosine:.3f}{mean}")
    short = "" if numbers["steps"] == numbers["recipe_steps"] else f" of the recipe's {numbers['recipe_steps']}"
    st.caption(
        f"{numbers['trainings']} trainings of {numbers['steps']} steps{short} ({numbers['epochs']:.0f} epochs, "
        f"{numbers['precision']}, seed {numbers['seed']}). In brackets: 95 % bootstrap interval over the images. "
        f"Embedding: {numbers['embedding']}. Methods: "
        f"{'; '.join(Setting.parse(text).title for text in numbers['settings'].values())}. {found.stale}"
    )


if evaluation is None:
    st.info("The methods of this study are not evaluated yet. In a terminal:")
    commands()
else:
    shown_kinds = {kind: KINDS[kind] for kind in evaluation.kinds}
    queries = st.segmented_control(
        "Queries", list(shown_kinds), format_func=shown_kinds.__getitem__, default=next(iter(shown_kinds)),
        required=True, key="queries", bind="query-params",
    )  # fmt: skip
    provenance(evaluation)
    methods(evaluation, queries)
    ablations(evaluation, queries)
st.subheader("Counterfactuals")
if effects is None:
    st.info("No counterfactuals yet. In a terminal:")
    st.code(f"python -m index_builder counterfactual {study.name} --queries 16", language=None)
else:
    removals(effects)
st.subheader("Published results")
st.markdown(
    "As the paper's authors report on other data and larger models. **Not comparable with the bars above**: other "
    "images, other networks, and λ chosen on the models it is reported on."
)
left, middle, right = st.columns(3)
dataset = left.selectbox(
    "Data set", list(DATASETS), format_func=DATASETS.__getitem__, key="published", bind="query-params"
)
kind = right.segmented_control(
    "Published queries", list(KINDS), format_func=KINDS.__getitem__, default="generated", required=True, key="their"
)
steps = middle.segmented_control("K, timesteps", [100, 10], default=100, required=True, key="published_timesteps")
rows = published(dataset, kind, steps)
st.plotly_chart(
    lds_bars([r.method for r in rows], [r.lds for r in rows], [r.lds - 2 * r.deviation for r in rows],
             [r.lds + 2 * r.deviation for r in rows], colour=NEUTRAL),
    key="published_bars", alt=f"Published LDS on {DATASETS[dataset]}",
)  # fmt: skip
st.caption(
    "Zheng et al., ICLR 2024 (arXiv 2311.00500), read from the notebooks of its released code: bootstrap means, ± 2 "
    "standard deviations. K: timesteps, M: retrained models, S: ensemble members."
)
st.subheader("Limits of these numbers")
st.markdown(
    """
- The LDS is about sums over many training images and a whole study. It does not prove that one image shaped another.
- It measures losses on random halves; a counterfactual measures pixels after removing chosen images. They can differ.
- The interval covers subset models only, not other training seeds, other queries or other recipes.
- All methods share the study's ground truth: compare differences between methods, not levels between studies.
"""
)
if evaluation is not None:
    with st.expander("Reproduce these numbers"):
        commands()
