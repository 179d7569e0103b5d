"""How well each method predicts retraining: measured in this study, and as published."""

import streamlit as st

from dtrak.app.elements import plain
from dtrak.app.evaluate import (
    CHOICES,
    added,
    best,
    control_rows,
    curves,
    explained_rows,
    family_table,
    interval_text,
    naming_rows,
    naming_texts,
    table_rows,
    verdict,
)
from dtrak.app.evaluation_figures import cost_figure, distance_boxes, lds_bars, lds_curves
from dtrak.app.figures import NEUTRAL
from dtrak.app.published import DATASETS, published
from dtrak.app.removals import effect, removal_means, removal_title, removal_values
from dtrak.app.widgets import current_service, hand_over_to_app
from dtrak.evaluation.counterfactual import Counterfactuals
from dtrak.evaluation.results import POWERS, Evaluation
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.images import data_url

PICTURES_IN_A_ROW = 5
KINDS = {"generated": "Generated images", "held-out": "Held-out images"}

hand_over_to_app()
st.title("Evaluate")
service = current_service()
study = service.folder.study
evaluation, effects = service.evaluation, service.counterfactuals
st.markdown(
    "Here the model is retrained on random halves of the training images, and each method predicts how well those "
    "models do on some images. The **LDS** (linear datamodeling score) is the rank correlation of prediction and "
    "measurement, × 100: 0 is chance, 100 is perfect."
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
        st.warning(plain(f"{found.stale.capitalize()}."))


def methods(found: Evaluation, queries: str) -> None:
    """Show the LDS of each method and the negative controls."""
    st.markdown(f"{added(found, queries)} {verdict(found, queries)} {best(found, queries)}")
    rows = found.own(queries)
    st.plotly_chart(
        lds_bars(
            [METHODS[r.method].title for r in rows], [100 * r.lds_crossfit for r in rows],
            [100 * r.interval[0] for r in rows], [100 * r.interval[1] for r in rows],
            [100 * r.lds_oracle for r in rows],
            baselines=[METHODS[r.method].title for r in rows if METHODS[r.method].baseline],
        ),
        key="lds_bars", alt="The LDS of each method with its interval",
    )  # fmt: skip
    st.caption(
        "Bars: cross-fitted λ, chosen on half of the subset models and evaluated on the other half, both ways. Lines: "
        "95 % bootstrap interval over subset models and queries. Green: baselines that see images or labels alone. "
        "Grey: the interval includes zero. Diamonds: oracle λ, best on the same models it is reported on, as in the "
        "literature; it is optimistic."
    )
    timed = [row for row in rows if row.seconds and not METHODS[row.method].control]
    if timed:
        st.markdown("**What does a better answer cost?**")
        controls = control_rows(found, queries)
        st.plotly_chart(
            cost_figure(
                [METHODS[r.method].title for r in timed], [r.seconds or 0 for r in timed],
                [100 * r.lds_crossfit for r in timed], [100 * r.interval[0] for r in timed],
                [100 * r.interval[1] for r in timed],
                [METHODS[r.method].title for r in timed if METHODS[r.method].baseline],
                (100 * min(r.interval[0] for r in controls), 100 * max(r.interval[1] for r in controls))
                if controls else None,
            ),
            key="cost", alt="The LDS of each method over the time that one query takes",
        )  # fmt: skip
        st.caption("Time on the machine that measured it, one thread, from the generated image to the scores.")
    with st.expander("As a table"):
        st.dataframe(table_rows(rows), hide_index=True, key="lds_table")
        st.caption("LDS × 100. 'over TRAK': difference to TRAK on the same resamples.")
    if table := family_table(found, queries):
        st.markdown("**Smaller removals and whole groups**, LDS × 100, at the λ chosen on the halves")
        st.dataframe(table, hide_index=True, key="family_table")
        st.caption("In brackets: the number of retrained models, and the 95 % interval.")


def explanations(found: Evaluation, queries: str) -> None:
    """Show what could explain the LDS: baselines, labels, and a network that did not learn."""
    st.markdown(
        "A score may predict retraining because it knows what images look alike, or only which label an image has. "
        "Three checks:\n"
        "- **Over the best baseline**: what a method adds to pixels, image embeddings, labels and creators, which get "
        "the same damping.\n"
        "- **Another query's scores**: the LDS if each query is given the scores of another query of its label. High "
        "values mean that the scores are about the label.\n"
        "- **Counts taken out**: the LDS after the numbers of images of each label and creator are regressed out."
    )
    st.dataframe(explained_rows(found, queries), hide_index=True, key="explained_table")
    st.caption("LDS × 100. Holm: p-values adjusted for the number of methods compared.")
    controls = control_rows(found, queries)
    if controls:
        words = [f"{plain(Setting.parse(r.setting).title)} {interval_text(r)}" for r in controls]
        st.markdown(
            f"**Negative controls.** Expected near zero: {'; '.join(words)}. Randomised: the same network with all "
            "weights shuffled, for training images and queries."
        )
        if any(r.interval[0] > 0 for r in controls):
            st.warning(
                "A negative control is above zero: part of the predictions comes from image similarity that any such "
                "network shows, not from what this one has learned."
            )


def names(found: Evaluation) -> None:
    """Show how often the significance test names a source, and whether retraining agrees."""
    if not found.naming:
        st.info("The significance test was not evaluated for this study.")
        return
    st.markdown(
        "The Attribution page calls a training image a significant source if its score exceeds those of unrelated "
        "images (5 % family-wise). Noise, shuffled pixels and flat colours should have a source named in at most 5 %."
    )
    st.dataframe(naming_rows(found), hide_index=True, key="naming_table")
    for sentence in naming_texts(found):
        st.markdown(sentence)
    st.caption(
        "Pixel RBF, same label: what looking alike names, without the model. Unrelated images are tested against the "
        "other half of them. Loss: of subset models, label and creator counts "
        "taken out; ± two standard errors."
    )


def ablations(found: Evaluation, queries: str) -> None:
    """Show the LDS over the values of each choice."""
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
        "are removed, and as many random ones; the model is retrained from the same seed, and the image is regenerated "
        "from the same noise. The more the image changes, the more those training images mattered."
    )
    st.markdown(effect(found))
    if not found.adjusted():
        st.warning(
            "The random removals here are not matched by label: a removal that empties a label changes images of that "
            "label for this reason alone."
        )
    st.dataframe(removal_means(found), hide_index=True, key="counterfactual_means")
    left, right = st.columns(2)
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
    pairs = [pair for kind in found.kinds for pair in found.of(kind) if pair.query == query]
    for start in range(0, 1 + len(pairs), PICTURES_IN_A_ROW):
        columns = st.columns(PICTURES_IN_A_ROW)
        for column, pair in zip(columns, [None, *pairs][start : start + PICTURES_IN_A_ROW], strict=False):
            if pair is None:
                column.image(data_url(found.before(query), 160), width="stretch", alt="With all images")
                column.markdown("**With all images**")
                continue
            title = removal_title(pair.method)
            column.image(data_url(found.picture(pair.after[0]), 160), width="stretch", alt=f"Without: {title}")
            mean = f", mean of {len(pair.after)} sets" if len(pair.after) > 1 else ""
            column.markdown(
                f"**Without {pair.removed}: {title}**  \nℓ2 {pair.distance:.1f}, cosine {pair.cosine:.3f}{mean}"
            )
    short = "" if numbers["steps"] == numbers["recipe_steps"] else f" of the recipe's {numbers['recipe_steps']}"
    st.caption(
        f"{numbers['trainings']} trainings of {numbers['steps']} steps{short} ({numbers['epochs']:.0f} epochs, "
        f"{numbers['precision']}, seed {numbers['seed']}). In brackets: 95 % bootstrap interval over the images. "
        f"Embedding: {numbers['embedding']}. Methods: "
        f"{plain('; '.join(Setting.parse(text).title for text in numbers['settings'].values()))}. {plain(found.stale)}"
    )


def published_results() -> None:
    """Show the results of the paper."""
    st.markdown(
        "As the paper's authors report on other data and larger models. **Not comparable with this study**: other "
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
        "Zheng et al., ICLR 2024 (arXiv 2311.00500), read from the notebooks of its released code: bootstrap means, "
        "± 2 standard deviations. K: timesteps, M: retrained models, S: ensemble members."
    )


def limits() -> None:
    """Show what the numbers do not say."""
    st.markdown(
        """
- The LDS is about sums over many training images and a whole study. It does not prove that one image shaped another.
- It measures losses on random halves; a counterfactual measures pixels after removing chosen images. They can differ.
- Intervals cover subset models and queries, not other training seeds or other recipes.
- All methods share the study's ground truth: compare differences between methods, not levels between studies.
"""
    )


TABS = {
    "methods": "Which method predicts retraining?",
    "explanations": "What explains it?",
    "significance": "Is the significance test right?",
    "ablations": "Which choices matter?",
    "counterfactuals": "Do pictures change?",
    "published": "What was published?",
}
shown = st.segmented_control("Question", list(TABS), format_func=TABS.__getitem__, default="methods", required=True,
                             key="question", bind="query-params", label_visibility="collapsed")  # fmt: skip
if shown == "counterfactuals":
    if effects is None:
        st.info("No counterfactuals yet. In a terminal:")
        st.code(f"python -m index_builder counterfactual {study.name} --queries 16", language=None)
    else:
        removals(effects)
elif shown == "published":
    published_results()
elif evaluation is None:
    st.info("The methods of this study are not evaluated yet. In a terminal:")
    commands()
else:
    shown_kinds = {kind: KINDS[kind] for kind in evaluation.kinds}
    queries = st.segmented_control(
        "Queries", list(shown_kinds), format_func=shown_kinds.__getitem__, default=next(iter(shown_kinds)),
        required=True, key="queries", bind="query-params",
    )  # fmt: skip
    if shown == "methods":
        methods(evaluation, queries)
    elif shown == "explanations":
        explanations(evaluation, queries)
    elif shown == "significance":
        names(evaluation)
    else:
        ablations(evaluation, queries)
    provenance(evaluation)
    with st.expander("What the numbers do not say"):
        limits()
    with st.expander("Reproduce these numbers"):
        commands()
