"""The influence of each creator's images on the saved pictures, against their share of the training images."""

import streamlit as st

from dtrak.app.creators import (
    LEAST_PICTURES,
    per_image_in_words,
    saved_pictures,
    sentence,
    standings,
    strongest_images,
    to_csv,
    to_html,
    to_json,
    total_in_words,
)
from dtrak.app.elements import plain
from dtrak.app.figures import standing_bars
from dtrak.app.sections.trust import reliability_card
from dtrak.app.views import tiles
from dtrak.app.widgets import current_service, gallery, hand_over_to_app, show_error
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url
from dtrak.utils.text import percent

MOST_IMAGES = 24

hand_over_to_app()
st.title("Creators")
service = current_service()
table = service.attributor.table
records = list(table.records[: table.train_size])
methods = [m.name for m in service.attributor.methods() if not m.generated_only and not m.fitted]
if not methods:
    st.info("No method is ready. In a terminal:")
    st.code(f"python -m index_builder build {service.folder.study.name}", language=None)
    st.stop()
name = st.selectbox(
    "Method", methods, format_func=lambda n: METHODS[n].title, key="creators_method", bind="query-params"
)
setting = Setting(name)
try:
    saved = service.saved_scores(setting)
except DtrakError as error:
    show_error(error)
    st.stop()
if not saved:
    st.info("No generated image has been attributed by this method yet; statements summarise saved pictures.")
    st.page_link("pages/generate.py", label="Generate an image")
    st.stop()
pictures, scores = [run for run, _ in saved], [one for _, one in saved]
found = standings(records, scores)
reliability_card(service, setting)
st.subheader("All creators")
st.plotly_chart(standing_bars(found), key="standings", alt="Share of positive scores and of data, by creator")
st.caption(
    f"Over {saved_pictures(len(saved))}, generated here and attributed by {METHODS[name].title}. Totals favour "
    "creators of many images; 'per image' is the total divided by the creator's share of the training images. In "
    "brackets: 95 % bootstrap interval over the pictures."
)
st.dataframe(
    [
        {
            "creator": s.creator,
            "images": s.images,
            "share of data": percent(s.share_of_data, 1),
            "total": total_in_words(s),
            "per image": per_image_in_words(s),
        }
        for s in found
    ],
    hide_index=True,
    key="standings_table",
)
if len(saved) < LEAST_PICTURES:
    st.warning(
        f"Only {saved_pictures(len(saved))}: generate and attribute at least {LEAST_PICTURES} for a reliable statement."
    )
st.subheader("Statement")
creator = st.selectbox("Creator", [s.creator for s in found], key="creator", bind="query-params")
standing = next(s for s in found if s.creator == creator)
st.markdown(plain(sentence(standing)))
shown = strongest_images(records, scores, creator, MOST_IMAGES)
st.markdown("**Their images, most influential first**")
gallery(tiles(shown, table), "proponent", "creator_images")
measured = service.reliability(setting, pictures[0]).text
study = service.folder.study
columns = st.columns(3)
columns[0].download_button(
    "Download statement (HTML)",
    to_html(
        study.title or study.name, METHODS[name].title, measured, standing,
        [(data_url(table.pixels[table.rows[s.record.id]], 96), s.record.caption or s.record.id) for s in shown],
        [(data_url(run.pixels, 96), run.title) for run in pictures], study.data.credit or "",
    ),
    f"statement-{study.name}.html", "text/html", on_click="ignore", key="statement-html", width="stretch",
)  # fmt: skip
columns[1].download_button(
    "Download statement (JSON)",
    to_json(study.name, name, measured, standing, [run.settings.as_dict() for run in pictures if run.settings]),
    f"statement-{study.name}.json", "application/json", on_click="ignore", key="statement-json", width="stretch",
)  # fmt: skip
columns[2].download_button(
    "Download all creators (CSV)", to_csv(found), f"creators-{study.name}.csv", "text/csv", on_click="ignore",
    key="statement-csv", width="stretch",
)  # fmt: skip
credit = plain(study.data.credit or "")
st.caption(f"Positive scores only; all pictures weigh the same. Not a share of authorship. {credit}")
