"""The training set as a map: colour it by what is known, lasso images, see them and what they add up to."""

from typing import Any

import streamlit as st

from dtrak.analysis.map import KINDS, self_influence
from dtrak.app.elements import explain, plain
from dtrak.app.explore import COLOURS, colour_values, group_text, groups_of, listed
from dtrak.app.figures import map_figure
from dtrak.app.service import ranking
from dtrak.app.views import tiles
from dtrak.app.widgets import choose_run, current_service, features_or_wait, gallery, hand_over_to_app
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url

MOST_SHOWN = 24

hand_over_to_app()
service = current_service()
table = service.attributor.table
left, right = st.columns([1, 3.2], gap="medium")
with left:
    st.title("Explore")
    kind = st.radio("Map of", list(KINDS), format_func=KINDS.__getitem__, key="map_kind", bind="query-params")
    colour = st.selectbox("Colour by", list(COLOURS), format_func=COLOURS.__getitem__, key="map_colour",
                          bind="query-params")  # fmt: skip
    names = [m.name for m in service.attributor.methods() if m.uses_features and m.damping is not None]
    setting = Setting(names[0]) if names else None
    run = None
    if colour == "influence":
        run = choose_run(service)
        if run is not None:
            st.image(data_url(run.pixels, 192), width=160, alt=f"The query: {run.title}")
            st.markdown(f"**{plain(run.title)}**")
    groups = groups_of(table)
    group = st.selectbox("List", [None, *groups], format_func=lambda title: title or "What is selected on the map",
                         key="map_group", help="All images of a creator or a class, without a pointer.")  # fmt: skip
    st.caption(
        "Images that are alike lie close together, by gradients of the model or by what they show; distances between "
        "far groups mean nothing. Drag a lasso or a box around images to list them."
    )

with right:
    try:
        answer: Any = None
        if colour == "influence" and run is not None and setting is not None:
            if not features_or_wait(service, run, [setting], "explore"):
                st.stop()
            answer = service.answer(run, setting, ranking, 10)
        extra: Any = None
        if setting is not None and colour == "self-influence":
            extra = service.answer_of_study(setting, self_influence)
        elif setting is not None and colour == "hubness":
            extra = service.evidence.null(setting)
        with st.spinner("Computing the map…"):
            found = service.map(kind)
    except DtrakError as reason:
        st.info(explain(reason))
        st.stop()
    if (colour == "influence" and answer is None) or (colour in ("self-influence", "hubness") and extra is None):
        st.info(
            "Generate an image first." if colour == "influence" and setting else "This needs features of the model."
        )
        st.stop()
    scores = None if answer is None else answer.scores_of(found.rows)
    values = colour_values(colour, table, found, scores, extra)
    if len(found.rows) < table.train_size:
        st.caption(f"A random {len(found.rows):,} of the {table.train_size:,} training images.")
    event = st.plotly_chart(
        map_figure(found, table, values, COLOURS[colour]), key="map", on_select="rerun",
        selection_mode=("lasso", "box", "points"), alt="Map of the training images",
    )  # fmt: skip
    chosen = sorted({point["customdata"][0] for point in event.get("selection", {}).get("points", [])})
    rows = groups[group] if group else [table.rows[i] for i in chosen if i in table.rows]
    if not rows:
        st.caption("No image is selected.")
        st.stop()
    st.markdown(plain(group_text(table, rows, answer)))
    shown = tiles(listed(table, rows, answer, MOST_SHOWN), table)
    if answer is None:
        shown = [{**tile, "score": "", "share": 0} for tile in shown]
    gallery(shown, "proponent", "selected")
    if len(rows) > MOST_SHOWN:
        st.caption(f"{MOST_SHOWN} of {len(rows)} are shown.")
