"""Two to four rankings side by side: several methods or settings on one image, or one method on two images."""

import streamlit as st

from dtrak.analysis.comparison import contrasted, disagreements, paired
from dtrak.app.ablate import lane_agreements
from dtrak.app.elements import describe, plain
from dtrak.app.figures import score_scatter
from dtrak.app.runs import Run
from dtrak.app.sections.trust import reliability_card, short
from dtrak.app.service import Lane, StudyService
from dtrak.app.views import tiles
from dtrak.app.widgets import (
    choose_run,
    current_service,
    features_or_wait,
    gallery,
    hand_over_to_app,
    lanes,
    open_sample,
    settings_of,
    show_error,
)
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url
from dtrak.utils.text import percent

DEFAULT = ("trak", "dtrak")
POINTS = 10_000  # most in the scatter plot
METHODS_MODE, PICTURES_MODE, CONTRAST_MODE = (
    "Methods on one picture",
    "One method on two pictures",
    "Why A rather than B",
)

hand_over_to_app()
st.title("Compare")
service = current_service()
table = service.attributor.table
chosen_run = choose_run(service)
if chosen_run is None:
    st.stop()
run = chosen_run


def pick_settings(service: StudyService, wanted: list[Setting], count: int) -> list[Setting]:
    """Choose a method or pinned setting for each lane."""
    names = [Setting(m.name) for m in service.attributor.methods()]
    wanted = list(dict.fromkeys([*wanted, *names]))[:count]
    options = list(dict.fromkeys([*names, *settings_of("pins", service), *wanted]))
    texts = [s.text for s in options]
    chosen = []
    for number, (column, setting) in enumerate(zip(st.columns(count), wanted, strict=False)):
        found = column.selectbox(
            f"Lane {number + 1}" if count > 1 else "Method", texts, texts.index(setting.text), key=f"lane_{number}",
            format_func=lambda text: Setting.parse(text).title,
        )  # fmt: skip
        chosen.append(Setting.parse(found))
    return chosen


def second_run(service: StudyService) -> Run | None:
    """Choose the second image."""
    others = [r for r in service.runs.latest(30) if r.id != run.id]
    if not others:
        st.info("Generate a second image first.")
        st.page_link("pages/generate.py", label="Generate an image")
        return None
    ids = [r.id for r in others]
    wanted = st.query_params.get("run2")
    titles = {r.id: r.title for r in others}
    if wanted and wanted not in ids and (found := service.runs.load(wanted)):
        ids.insert(0, wanted)
        titles[wanted] = found.title
    index = ids.index(wanted) if wanted in ids else 0
    chosen = st.selectbox("Second image", ids, index, format_func=titles.__getitem__)
    st.query_params["run2"] = chosen
    return service.runs.load(chosen)


def show_queries(runs: list[Run]) -> None:
    """Show the queries above their lanes."""
    for column, (letter, r) in zip(st.columns(4), zip("AB", runs, strict=False), strict=False):
        column.image(data_url(r.pixels, 128), width=128, alt=f"Query {letter}: {r.title}")
        column.caption(plain(f"{letter}: {r.title}" if len(runs) > 1 else r.title))


def show(found: list[Lane], top: int) -> None:
    """Show lanes, agreement, disagreements and scatter plot."""
    shown = [
        {
            "title": f"{one.title} · {one.measured}" if one.measured else one.title,
            "tiles": tiles(one.ranking.listing(top), table),
        }
        for one in found
    ]
    lanes(shown, "lanes_view")
    st.subheader("Agreement")
    rows = [
        {
            "lanes": f"{found[p.first].title}  ↔  {found[p.second].title}",
            f"overlap@{top}": percent(p.agreement.overlap),
            "rank-biased overlap": round(p.agreement.rank_biased_overlap, 3),
            "Kendall τ": round(p.agreement.kendall, 3),
        }
        for p in lane_agreements([one.known for one in found], top)
    ]
    st.dataframe(rows, hide_index=True, key="agreement")
    a, b = found[0], found[1]
    st.subheader("Strongest disagreements")
    gaps = disagreements(a.known, b.known)
    if not gaps:
        st.caption("None.")
    for column, gap in zip(st.columns(max(len(gaps), 1)), gaps, strict=False):
        record = table.records[gap.row]
        column.image(data_url(table.pixels[gap.row], 96), width="stretch", alt=describe(record))
        places = f"{a.known.place_text(gap.place_a)} ↔ {b.known.place_text(gap.place_b)}"
        column.markdown(f"**{plain(places)}**  \n{plain(record.caption or record.id)}")
    if gaps:
        st.caption(f"Rank by {plain(a.title)} ↔ rank by {plain(b.title)}.")
    marked = {table.rows[s.record.id] for lane in (a, b) for s in lane.ranking.listing(top)}
    points, *scores = paired(a.ranking, b.ranking, sorted(marked), POINTS)
    whole = len(points) == table.train_size
    st.subheader("All scores" if whole else "Scores")
    event = st.plotly_chart(
        score_scatter(points, scores[0], scores[1], (a.title, b.title), table, marked), key="scatter",
        on_select="rerun", selection_mode="points", alt="Scores of the training images in the first two lanes",
    )  # fmt: skip
    drawn = "" if whole else f" Shown are the top lists and {len(points) - len(marked):,} images drawn at random."
    st.caption(f"Click a point to open the training image.{drawn}")
    if event.selection.points:
        open_sample(event.selection.points[0]["customdata"][0])


mode = st.segmented_control(
    "Compare", [METHODS_MODE, PICTURES_MODE, CONTRAST_MODE], default=METHODS_MODE, required=True, key="compare",
    bind="query-params",
)  # fmt: skip
shown_at, lanes_at, _ = st.columns([1, 1, 2], gap="large")
top = shown_at.slider("Images shown", 5, 20, 8, key="shown", bind="query-params")
wanted = settings_of("lanes", service, ";".join(DEFAULT))
try:
    if mode == METHODS_MODE:
        count = lanes_at.slider("Lanes", 2, 4, min(max(len(wanted), 2), 4), key="lane_count")
        settings = pick_settings(service, wanted, count)
        st.query_params["lanes"] = ";".join(s.text for s in settings)
        show_queries([run])
        if not features_or_wait(service, run, settings, "compare"):
            st.stop()
        show([service.lane(run, s, s.title, short(service.reliability(s, run))) for s in settings], top)
        st.caption("LDS: how well a method predicts retraining, as measured in this study, with its 95 % interval.")
        st.page_link("pages/evaluate.py", label="How this was measured")
    else:
        other = second_run(service)
        if other is None:
            st.stop()
        (setting,) = pick_settings(service, wanted[-1:], 1)
        show_queries([run, other])
        for number, r in enumerate((run, other)):
            if not features_or_wait(service, r, [setting], f"compare-{number}"):
                st.stop()
        pair = [service.lane(r, setting, f"{letter}: {r.title}") for letter, r in zip("AB", (run, other), strict=True)]
        if mode == PICTURES_MODE:
            reliability_card(service, setting, run)
            show(pair, top)
        else:
            reliability_card(service, setting, run)
            st.markdown(f"By {plain(setting.title)}: scores of A minus scores of B, each normalised to unit length.")
            for title, sign, side in (("A rather than B", 1, "proponent"), ("B rather than A", -1, "opponent")):
                st.subheader(title)
                why = contrasted(pair[0].ranking, pair[1].ranking, top, sign)
                gallery(tiles(why, table), side, f"contrast-{side}")
except DtrakError as error:
    show_error(error)
