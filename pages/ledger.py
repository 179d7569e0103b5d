"""The ledger: what each creator is credited with, of one picture or of all saved ones, and what nobody is."""

from collections import Counter

import streamlit as st

from dtrak.analysis.ledger import Credit, ledger, merged_change, share_null
from dtrak.app.creators import (
    LEAST_PICTURES,
    measured_effects,
    saved_pictures,
    sentence,
    standings,
    strongest_images,
    to_html,
    to_json,
)
from dtrak.app.elements import explain, plain
from dtrak.app.figures import credit_bars
from dtrak.app.ledger import LedgerFile, as_csv, as_json, ledger_file
from dtrak.app.sections.trust import reliability_card
from dtrak.app.views import tiles
from dtrak.app.widgets import current_service, gallery, hand_over_to_app, show_error
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting
from dtrak.utils.errors import DtrakError
from dtrak.utils.images import data_url
from dtrak.utils.text import percent

MOST_IMAGES = 24
INFLATED = 0.2  # fall of a creator's share, without near-duplicates, that is worth a warning
ALL = "all"

hand_over_to_app()
st.title("Ledger")
service = current_service()
table = service.attributor.table
study = service.folder.study
records = table.train_records
methods = [m.name for m in service.attributor.methods() if m.tested and not m.fitted and not m.control]
if not methods:
    st.info("No method is ready. In a terminal:")
    st.code(f"python -m index_builder build {study.name}", language=None)
    st.stop()
left, right = st.columns([1, 3], gap="medium")
with left:
    name = st.selectbox(
        "Method", methods, format_func=lambda n: METHODS[n].title, key="ledger_method", bind="query-params"
    )
setting = Setting(name)
try:
    saved = service.saved_scores(setting)
except DtrakError as error:
    show_error(error)
    st.stop()
if not saved:
    st.info("No generated image has been attributed by this method yet; the ledger covers saved images.")
    st.page_link("pages/generate.py", label="Generate an image")
    st.stop()
said = Counter(run.title for run, _ in saved)
titles = {r.id: r.title if said[r.title] == 1 else f"{r.title} ({r.id[:6]})" for r, _ in saved}
with left:
    chosen = st.selectbox("Image", [ALL, *titles], key="ledger_image",
                          format_func=lambda i: saved_pictures(len(saved)) if i == ALL else titles[i])  # fmt: skip
    used = [(run, one) for run, one in saved if chosen in (ALL, run.id)]
    st.image([data_url(run.pixels, 96) for run, _ in used[:9]], width=72, alt=[run.title for run, _ in used[:9]])
runs, scores = [run for run, _ in used], [one for _, one in used]
with right:
    try:
        null = service.answer_of_study(setting, share_null)
    except DtrakError as reason:
        st.info(explain(reason))
        st.stop()
    found, each = ledger(null, scores)
    st.markdown(
        f"**{percent(found.unattributed)} unattributed.** A creator is credited with what exceeds the share that "
        "unrelated images give them, if it is significant (5 % an image, over all creators); what cannot be told from "
        "chance is given to nobody."
        + ("" if found.pictures == 1 else " Over several images, about 5 % of those without a source credit someone.")
    )
    st.plotly_chart(credit_bars(found), key="credits", alt="Credited share by creator, and what is unattributed")
    effects = measured_effects(service.folder)

    def credited(c: Credit) -> str:
        return f"{percent(c.credited, 1)} ({percent(c.low, 1)} to {percent(c.high, 1)})" if c.credited else "–"

    lines = [
        {
            "creator": c.creator,
            "images": f"{c.images:,}",
            "credited": credited(c),
            **({"loss without them": effects.get(c.creator, "")} if effects else {}),
            "of positive scores": percent(c.observed, 1),
            "of unrelated images": percent(c.expected, 1),
            "p": "" if c.p_value is None else f"{c.p_value:.2g}",
            **({"credited in": f"{c.credited_in} of {found.pictures}"} if found.pictures > 1 else {}),
        }
        for c in found.credits
    ]
    lines.append(dict.fromkeys(lines[0], "") | {"creator": "unattributed", "credited": percent(found.unattributed, 1)})
    st.dataframe(
        lines, hide_index=True, key="ledger_table",
        column_config={"credited": st.column_config.TextColumn(width=160),
                       "loss without them": st.column_config.TextColumn(width=160)},
    )  # fmt: skip
    if effects:
        st.caption("Loss without them: measured change of the loss on generated images when the model is trained again "
                   "without this creator, against the mean over creators. The interval is over pictures; that another "
                   "training seed would give another loss is not in it. Knowing whose style a "
                   "prompt asks for may predict it as well as scores do (Evaluate compares them).")  # fmt: skip
    if service.duplicates is not None:
        for creator, fall in merged_change(records, scores, service.duplicates).items():
            if fall > INFLATED:
                st.warning(f"{plain(creator)}: {percent(fall)} of their share comes from near-duplicates of their own "
                           "images. Copies can inflate a share.")  # fmt: skip
    reliability_card(service, setting)
    measured = service.reliability(setting, runs[0]).text

    def content() -> LedgerFile:
        return ledger_file(study.name, service.model_fingerprint, name, measured,
                           service.attributor.fingerprint(setting), runs, each, records, scores)  # fmt: skip

    columns = st.columns(2)
    columns[0].download_button(
        "Download ledger (CSV)", lambda: as_csv(content()), f"ledger-{study.name}.csv", "text/csv", on_click="ignore",
        key="ledger-csv", width="stretch",
    )  # fmt: skip
    columns[1].download_button(
        "Download ledger (JSON)", lambda: as_json(content()), f"ledger-{study.name}.json", "application/json",
        on_click="ignore", key="ledger-json", width="stretch",
    )  # fmt: skip

st.subheader("Statement of one creator")
standing_of = standings(records, scores)
creator = st.selectbox("Creator", [s.creator for s in standing_of], key="creator", bind="query-params")
standing = next(s for s in standing_of if s.creator == creator)
st.markdown(plain(sentence(standing)))
if len(used) < LEAST_PICTURES:
    st.caption(f"Only {saved_pictures(len(used))}; generate and attribute at least {LEAST_PICTURES} for a statement.")
shown = strongest_images(records, scores, creator, MOST_IMAGES)
st.markdown("**Their images, most influential first**")
gallery(tiles(shown, table), "proponent", "creator_images")
columns = st.columns(2)
columns[0].download_button(
    "Download statement (HTML)",
    lambda: to_html(
        study.title or study.name, METHODS[name].title, measured, standing,
        [(data_url(table.pixels[table.rows[s.record.id]], 96), s.record.caption or s.record.id) for s in shown],
        [(data_url(run.pixels, 96), run.title) for run in runs], study.data.credit or "",
    ),
    f"statement-{study.name}.html", "text/html", on_click="ignore", key="statement-html", width="stretch",
)  # fmt: skip
columns[1].download_button(
    "Download statement (JSON)",
    lambda: to_json(study.name, name, measured, standing, [run.settings.as_dict() for run in runs if run.settings]),
    f"statement-{study.name}.json", "application/json", on_click="ignore", key="statement-json", width="stretch",
)  # fmt: skip
st.caption(f"Not a share of authorship. All images weigh the same. {plain(study.data.credit or '')}")
