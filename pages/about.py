"""What scores mean and do not mean, credits, licences and versions."""

from importlib.metadata import version

import streamlit as st

from dtrak.app.widgets import hand_over_to_app
from dtrak.config import load_study
from dtrak.methods.registry import METHODS

hand_over_to_app()
st.title("About")
st.markdown(
    """
#### What a score is
For a picture x and a training image n, both are looked at through the model's gradients: how the weights
would have to move to change what the model predicts there. A high score says: *removing images like n should
change x most, according to the method*. A negative score says that n pulls the model away from x.

#### What it is not
- Not a share of authorship. Scores are comparable within one picture, not between pictures.
- Not similarity. An image can look alike and not matter, or matter and look nothing alike.
- Not proof. Only training again without an image shows what it did. "No clear source" is a possible answer.
- Not meaningful for an image the model did not draw, such as a photograph: it gets numbers all the same.
"""
)
st.markdown("#### Methods")
st.caption("λ is stated relative to the kernel's mean non-zero eigenvalue.")
for method in METHODS.values():
    damped = "" if method.damping is None else f" Default λ: {method.damping:g}."
    st.markdown(f"**{method.title}**: {method.formula}  \n{method.source}.{damped}")
study = load_study(st.session_state["study"])
st.markdown("#### Credits and licences")
st.markdown(study.data.credit or f"The images of study '{study.name}' carry their own licences; each page shows them.")
st.markdown("The code is under the Apache License 2.0; the drawings are not part of it.")
st.markdown("#### Versions")
packages = ("streamlit", "torch", "diffusers", "peft", "faiss-cpu", "numpy", "datasets")
st.code("\n".join(f"{name} {version(name)}" for name in packages), language=None)
st.caption("Nothing leaves this machine: no statistics, no fonts or scripts from elsewhere.")
