"""The story in three steps, an example, and the state of the study."""

import streamlit as st

from dtrak.app.elements import plain
from dtrak.app.example import home_example
from dtrak.app.widgets import hand_over_to_app, open_sample, show_error, wait_until_loaded
from dtrak.build.status import commands_left, study_status
from dtrak.config import load_study
from dtrak.study.folder import StudyFolder
from dtrak.utils.errors import DtrakError

hand_over_to_app()
st.title("Which training images shaped this one?")
st.markdown(
    "A diffusion model learns from people's pictures. **dtrak** measures, for a picture it draws, which of "
    "them it leans on – with D-TRAK, the gradient of what the model predicts, compared across the training set."
)
steps = st.columns(3)
for column, title, text, page in zip(
    steps,
    ("1 · Generate", "2 · Attribute", "3 · Judge"),
    (
        "Draw a picture from a seed. The same seed always gives the same pixels.",
        "See the training images whose removal should change it most, and those that pull against it.",
        "See how well each method predicts what retraining does, flip its choices, and put methods beside each other.",
    ),
    ("pages/generate.py", "pages/attribution.py", "pages/evaluate.py"),
    strict=True,
):
    with column, st.container(border=True, height="stretch"):
        st.subheader(title)
        st.write(text)
        st.page_link(page, label=f"{title.split(' · ')[1]} →")

study = load_study(st.session_state["study"])
example = home_example(study.name)
if example:
    st.subheader("An example")
    left, right = st.columns([1, 4])
    left.image(example.image, width=160, alt="A generated picture")
    left.caption(f"Drawn by the model, seed {example.seed}")
    with right:
        st.markdown(f"Its strongest proponents by {example.method}, with their scores:")
        columns = st.columns(len(example.tiles))
        for column, tile in zip(columns, example.tiles, strict=True):
            column.image(tile["src"], width=96, alt=tile["alt"])
            column.markdown(f"**{tile['score']}**  \n{plain(tile['caption'])}  \n{plain(tile['creator'])}")
            if column.button("View", key=f"view-{tile['id']}", help=tile["alt"]):
                open_sample(tile["id"])

st.subheader("State of the study")
try:
    status = study_status(StudyFolder(study))
    for part in ("data", "model", "features", "index"):
        st.markdown(f"- **{part}**: {status[part]}")
    if missing := commands_left(StudyFolder(study)):
        st.info("This study cannot be asked yet. In a terminal:")
        st.code("\n".join(missing), language=None)
        wait_until_loaded()  # it builds a network to know its cost
        from dtrak.app.needs import needs_in_words

        st.markdown(needs_in_words(StudyFolder(study)))
except DtrakError as error:
    show_error(error)
if study.data.credit:
    st.caption(study.data.credit)
