"""What scores mean and do not mean; methods, credits, licences and versions."""

from importlib.metadata import PackageNotFoundError, version

import streamlit as st

from dtrak.app.elements import plain
from dtrak.app.widgets import hand_over_to_app
from dtrak.config import load_study
from dtrak.methods.registry import METHODS

hand_over_to_app()
st.title("About")
st.markdown(
    """
#### What a score is
For an image x and a training image n, a method compares the model's gradients: how the weights would have to
change to change the model's prediction for each. A high score means: *removing images like n should change x
most, according to the method*. A negative score means that n moves the model away from x.

#### What it is not
- Not a share of authorship. Scores are comparable within one image, not between images.
- Not similarity. A similar image can have no influence, and an influential one can look different.
- Not proof. Only retraining without an image shows its effect. "No clear source" is a possible answer.
- Not meaningful for an image that the model did not generate, such as a photograph, although it gets scores.
"""
)
st.markdown("#### Methods")
st.caption("λ is stated relative to the kernel's mean non-zero eigenvalue.")
for method in METHODS.values():
    damped = "" if method.damping is None else f" Default λ: {method.damping:g}."
    st.markdown(f"**{method.title}**: {method.formula}  \n{method.source}.{damped}")
study = load_study(st.session_state["study"])
st.markdown("#### Credits and licences")
credit = f"The images of study '{study.name}' have their own licences; each page shows them."
st.markdown(plain(study.data.credit or credit))
st.markdown("The code is under the Apache License 2.0; the training images are not part of it.")
st.markdown("#### Versions")
PACKAGES = ("streamlit", "torch", "diffusers", "peft", "numpy", "datasets", "faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")


def installed(name: str) -> str | None:
    """The name and version of a package, or None if it is not installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


st.code("\n".join(filter(None, map(installed, PACKAGES))), language=None)
st.caption("Nothing leaves this machine: no usage statistics, no external fonts or scripts.")
