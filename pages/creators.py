"""What a creator's images weigh in the pictures that were kept, against their share of the training images."""

import numpy as np
import streamlit as st

from dtrak.app.creators import (
    LEAST_PICTURES,
    UNKNOWN,
    kept_pictures,
    mean_shares,
    per_image_in_words,
    sentence,
    standings,
    to_csv,
    to_html,
    to_json,
    total_in_words,
)
from dtrak.app.elements import plain
from dtrak.app.figures import standing_bars
from dtrak.app.trust import reliability_card
from dtrak.app.views import tiles
from dtrak.app.widgets import current_service, gallery, hand_over_to_app, show_error
from dtrak.methods.ranking import Scored
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
    st.info("No method is built yet. In a terminal:")
    st.code(f"python -m index_builder build {service.folder.study.name}", language=None)
    st.stop()
name = st.selectbox(
    "Method", methods, format_func=lambda n: METHODS[n].title, key="creators_method", bind="query-params"
)
setting = Setting(name)
try:
    kept = service.kept_scores(setting)
except DtrakError as error:
    show_error(error)
    st.stop()
if not kept:
    st.info("No generated picture has been attributed by this method yet; a statement rests on kept pictures.")
    st.page_link("pages/generate.py", label="Generate a picture")
    st.stop()
found = standings(records, [scores for _, scores in kept])
reliability_card(service, setting)
st.subheader("All creators")
st.plotly_chart(standing_bars(found), key="standings", alt="Total and share of the data by creator")
st.caption(
    f"Over {kept_pictures(len(kept))}, generated here and attributed by {METHODS[name].title}. Totals favour creators "
    "of many images; 'per image' sets the total against the creator's share of the training images. In brackets: 95 % "
    "of resamples of the pictures."
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
if len(kept) < LEAST_PICTURES:
    st.warning(
        f"{len(kept)} picture{'s are' if len(kept) > 1 else ' is'} few: generate and attribute more for a statement."
    )
st.subheader("Statement")
creator = st.selectbox("Creator", [s.creator for s in found], key="creator", bind="query-params")
standing = next(s for s in found if s.creator == creator)
st.markdown(plain(sentence(standing)))
mean = mean_shares([scores for _, scores in kept])
mine = [row for row in np.argsort(-mean, kind="stable").tolist() if (records[row].creator or UNKNOWN) == creator]
shown = mine[:MOST_IMAGES]
st.markdown("**Their images, the most influence first**")
gallery(tiles([Scored(records[row], float(mean[row])) for row in shown], table), "proponent", "creator_images")
measured = service.reliability(setting, kept[0][0]).text
study = service.folder.study
pictures = [run for run, _ in kept]
columns = st.columns(3)
columns[0].download_button(
    "Statement (HTML)",
    to_html(
        study.title or study.name, METHODS[name].title, measured, standing,
        [(data_url(table.pixels[row], 96), records[row].caption or records[row].id) for row in shown],
        [(data_url(run.pixels, 96), run.title) for run in pictures], study.data.credit or "",
    ),
    f"statement-{study.name}.html", "text/html", on_click="ignore", key="statement-html", width="stretch",
)  # fmt: skip
columns[1].download_button(
    "Statement (JSON)",
    to_json(study.name, name, measured, standing, [run.settings.as_dict() for run in pictures if run.settings]),
    f"statement-{study.name}.json", "application/json", on_click="ignore", key="statement-json", width="stretch",
)  # fmt: skip
columns[2].download_button(
    "All creators (CSV)", to_csv(found), f"creators-{study.name}.csv", "text/csv", on_click="ignore",
    key="statement-csv", width="stretch",
)  # fmt: skip
st.caption(f"Positive scores only, each picture counted alike. No share of authorship. {study.data.credit or ''}")
