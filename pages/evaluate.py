"""How well each method predicts what retraining does: measured here, and as published elsewhere."""

import numpy as np
import streamlit as st

from dtrak.app.evaluate import (
    CHOICES,
    DATASETS,
    best,
    curves,
    effect,
    interval_text,
    published,
    sanity_rows,
    table_rows,
    verdict,
)
from dtrak.app.figures import NEUTRAL, distance_boxes, lds_bars, lds_curves
from dtrak.app.widgets import current_service, hand_over_to_app
from dtrak.evaluation.counterfactual import COMPARED, Counterfactuals, mean_with_interval
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
    "An attribution that nobody checked is an opinion. Here it is checked: the model is trained again on random halves "
    "of the training images, and each method is asked to predict how well those models do on pictures. The **LDS** "
    "(linear datamodeling score) is the rank correlation of prediction and truth, × 100: 0 is guessing, 100 is perfect."
)


def commands() -> None:
    """How the numbers are made."""
    name = study.name
    st.code(
        f"python -m index_builder retrain {name}\npython -m index_builder evaluate {name}\n"
        f"python -m index_builder counterfactual {name} --queries 16",
        language=None,
    )


def behind(found: Evaluation) -> None:
    """Counts, and what has changed since."""
    numbers = found.behind
    seeds = f"{numbers['seeds']} training seed{'s' if numbers['seeds'] > 1 else ''} each"
    st.caption(
        f"Behind each number: {numbers['subset_models']} subset models, {seeds} ({numbers['trainings']} trainings of "
        f"{numbers['steps']} steps, {numbers['precision']}); {numbers['held-out']} held-out and {numbers['generated']} "
        f"generated images; each model's loss over {len(numbers['timesteps'])} timesteps, {numbers['noise_draws']} "
        f"noise draw each. Measured {numbers['measured']}."
    )
    if numbers["subset_models"] < 64:
        st.warning(f"Only {numbers['subset_models']} subset models are behind this; 64 are usual. Intervals are wide.")
    if numbers["fitted"]:
        st.caption(f"Empirical influence and Datamodel were fitted to {numbers['fitted']} other subset models.")
    if found.stale:
        st.warning(f"{found.stale.capitalize()}.")


def methods(found: Evaluation, queries: str) -> None:
    """The LDS of each method."""
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
        "Bars: λ chosen on half of the subset models and reported on the other half, both ways (cross-fitted); lines: "
        "95 % of bootstrap resamples of the subset models. Grey: the interval holds zero. Diamonds: the λ that is "
        "best on the very models it is reported on, as the literature prints it; it flatters."
    )
    with st.expander("As a table"):
        st.dataframe(table_rows(rows), hide_index=True, key="lds_table")
        st.caption("In hundredths. 'over TRAK': the difference, on the same resamples.")
    checks = sanity_rows(found, queries)
    if checks:
        words = [f"{Setting.parse(r.setting).title} {interval_text(r)}" for r in checks]
        st.markdown(
            f"**Sanity.** Near zero for what knows nothing of the training: {'; '.join(words)}. Randomised: the same "
            "network with all its weights shuffled, features and queries alike."
        )
        if any(r.interval[0] > 0 for r in checks):
            st.warning(
                "A method on the shuffled network scores above zero: what it predicts here, it owes in part to "
                "how images resemble each other through any such network, not to what this one has learnt."
            )


def ablations(found: Evaluation, queries: str) -> None:
    """The LDS along each choice."""
    st.subheader("What each choice is worth")
    offered = {c: t for c, t in CHOICES.items() if curves(found, c, queries, POWERS)}
    if not offered:
        st.caption("No choice was measured.")
        return
    choice = st.segmented_control(
        "Along", list(offered), format_func=offered.get, default=next(iter(offered)), required=True, key="ablation",
        bind="query-params",
    )  # fmt: skip
    shown = curves(found, choice, queries, POWERS)
    if choice == "damping":
        names = st.multiselect("Methods", [c.name for c in shown], [c.name for c in shown[:2]], key="curve_methods",
                               max_selections=4)  # fmt: skip
        shown = [c for c in shown if c.name in names]
    logarithmic = choice in ("damping", "timesteps", "projection_dim")
    figure = lds_curves(shown, offered[choice], logarithmic, ordered=logarithmic or choice == "checkpoint")
    st.plotly_chart(figure, key="lds_curves", alt=f"The LDS of D-TRAK and TRAK along {offered[choice]}")
    note = {
        "damping": "On all subset models; every other number of this page is cross-fitted.",
        "checkpoint": "All with the timesteps and the projection that every checkpoint has.",
        "strategy": "Both with the timesteps that are stored for the first ones.",
        "output": "All with the timesteps and the projection that every output function has; each at its own λ.",
    }.get(choice, "Each point has chosen its own λ, cross-fitted.")
    st.caption(note)


def removals(found: Counterfactuals) -> None:
    """What leaving out the named images did to pictures."""
    numbers = found.behind
    total = service.attributor.table.train_size
    st.markdown(
        f"For {numbers['queries']} generated pictures, the {numbers['removed']} of {total} training images that a "
        "method names first are left out, the model is trained again from the same seed, and the same noise is "
        "denoised. The further the picture moves, the more those images mattered."
    )
    means = []
    for name in COMPARED:
        pairs = found.of(name)
        if pairs:
            distance, cosine = (
                mean_with_interval(np.array(v)) for v in ([p.distance for p in pairs], [p.cosine for p in pairs])
            )
            means.append({
                "left out by": METHODS[name].title,
                "pixels moved, ℓ2": "{:.2f} ({:.2f} to {:.2f})".format(*distance),
                "embedding cosine": "{:.3f} ({:.3f} to {:.3f})".format(*cosine),
            })  # fmt: skip
    st.markdown(effect(found))
    st.dataframe(means, hide_index=True, key="counterfactual_means")
    left, right = st.columns(2)
    titles = {name: METHODS[name].title for name in COMPARED}
    distances = {titles[n]: [p.distance for p in found.of(n)] for n in COMPARED}
    cosines = {titles[n]: [p.cosine for p in found.of(n)] for n in COMPARED}
    left.plotly_chart(distance_boxes(distances, "ℓ2 of pixels"), key="l2_boxes",
                      alt="How far pictures moved in pixels, by method")  # fmt: skip
    right.plotly_chart(distance_boxes(cosines, "embedding cosine"), key="cosine_boxes",
                       alt="How alike pictures stayed by embedding, by method")  # fmt: skip
    query = found.queries[0]
    if len(found.queries) > 1:
        query = st.select_slider("Picture", found.queries, key="counterfactual_query")
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
        f"{numbers['precision']}, seed {numbers['seed']}). In brackets, 95 % of bootstrap resamples of the pictures. "
        f"Embedding: {numbers['embedding']}. Methods: "
        f"{'; '.join(Setting.parse(text).title for text in numbers['settings'].values())}. {found.stale}"
    )


if evaluation is None:
    st.info("The methods of this study are not measured yet. In a terminal:")
    commands()
else:
    shown_kinds = {kind: KINDS[kind] for kind in evaluation.kinds}
    queries = st.segmented_control(
        "Asked about", list(shown_kinds), format_func=shown_kinds.get, default=next(iter(shown_kinds)), required=True,
        key="queries", bind="query-params",
    )  # fmt: skip
    behind(evaluation)
    methods(evaluation, queries)
    ablations(evaluation, queries)
st.subheader("Counterfactuals")
if effects is None:
    st.info("No counterfactual was made yet. In a terminal:")
    st.code(f"python -m index_builder counterfactual {study.name} --queries 16", language=None)
else:
    removals(effects)
st.subheader("Published elsewhere")
st.markdown(
    "What the paper's authors report on other data and larger models. **Not comparable with the bars above**: "
    "other pictures, other networks, and λ chosen on the models that the number is reported on."
)
left, middle, right = st.columns(3)
dataset = left.selectbox("Data set", list(DATASETS), format_func=DATASETS.get, key="published", bind="query-params")
kind = right.segmented_control(
    "Their", list(KINDS), format_func=KINDS.get, default="generated", required=True, key="their"
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
st.subheader("What the numbers can and cannot say")
st.markdown(
    """
- An LDS is about sums over many images on a whole study. It does not prove that one image shaped one picture.
- It is about losses on random halves; a counterfactual is about pixels after named images are gone. They can differ.
- The interval is over subset models alone: other training seeds, other pictures and other recipes are not in it.
- Pictures of one study share its model, so methods are compared on the same truth; compare differences, not levels.
"""
)
if evaluation is not None:
    with st.expander("Make these numbers again"):
        commands()
