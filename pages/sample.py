"""One training image: original, preprocessed, metadata, and the generated images it influences most."""

import streamlit as st

from dtrak.app.elements import describe, plain
from dtrak.app.sections.trust import reliability_card
from dtrak.app.widgets import current_service, hand_over_to_app
from dtrak.data import BadImage, open_image
from dtrak.methods.settings import Setting
from dtrak.utils.images import data_url, reduced_url

hand_over_to_app()
service = current_service()
table = service.attributor.table
sample_id = st.query_params.get("id", "")
if sample_id not in table.rows:
    st.title("Training image")
    st.warning("There is no such training image in this study." if sample_id else "No training image is chosen.")
    st.page_link("pages/attribution.py", label="Go to Attribution to choose one")
    st.stop()
record = table.records[table.rows[sample_id]]
st.title(plain(record.caption or record.id))
left, right = st.columns(2, gap="large")
with left:
    try:
        original = open_image(table.original(sample_id), service.folder.study.data.max_pixels)
        st.image(reduced_url(original, 768), width=384, alt=describe(record))
        st.caption("Original")
    except BadImage as reason:
        st.warning(f"The original cannot be shown: {reason}.")
    pixels = table.pixels[table.rows[sample_id]]
    st.image(data_url(pixels, 192), width=192, alt=f"{describe(record)}, as the model sees it")
    st.caption("As the model sees it")
with right:
    facts = {
        "Id": record.id,
        "Class": record.label,
        "Creator": record.creator,
        "Licence": record.licence,
        "Split": "training set" if record.split == "train" else "held-out, not used for training",
    }
    for name, value in facts.items():
        st.markdown(f"**{name}**: {plain(value or 'not stated')}")
    if service.folder.study.data.credit:
        st.caption(plain(service.folder.study.data.credit))
    run = st.query_params.get("run")
    st.page_link("pages/attribution.py", label="Back to the attribution", query_params={"run": run} if run else None)

if record.split == "train":
    st.subheader("Generated images it influences most")
    method = next((m for m in service.attributor.methods() if m.uses_features), None)
    found = service.reverse(sample_id, Setting(method.name)) if method else []
    if method is None or not found:
        st.caption("No saved picture has features yet; attribute one first.")
    else:
        for column, (run_, z, place) in zip(st.columns(8), found, strict=False):
            column.image(data_url(run_.pixels, 96), width="stretch", alt=run_.title)
            column.page_link("pages/attribution.py", label=f"rank {place}", query_params={"run": run_.id})
            column.caption(f"z {z:+.1f}")
        st.caption(
            f"The saved pictures whose {method.title} scores give this image the highest z-score, and its rank in "
            "each. Scores of two pictures have no common unit; z-scores are within each picture."
        )
        reliability_card(service, Setting(method.name))
