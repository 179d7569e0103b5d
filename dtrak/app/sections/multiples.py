"""Small multiples on the Ablate page: the ranking at every value of one choice, with its measured LDS."""

from typing import Any

import numpy as np
import streamlit as st

from dtrak.app.elements import plain
from dtrak.app.runs import Run
from dtrak.app.service import StudyService, ranking
from dtrak.app.views import tiles
from dtrak.app.widgets import features_or_wait, lanes
from dtrak.methods.choices import CHOICES, aligned, changed, offer, stored
from dtrak.methods.registry import METHODS
from dtrak.methods.settings import Setting

MOST, SHOWN = 6, 5  # values side by side, and images of each
DAMPINGS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
NONE = "nothing"


def values_of(service: StudyService, setting: Setting, name: str) -> list[Any]:
    """At most ``MOST`` values of a choice that the stored features allow, in order."""
    if name == "damping":
        return list(DAMPINGS) if METHODS[setting.method].damping is not None else []
    found = offer(service.attributor, setting, name).values
    if len(found) <= MOST:
        return found
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, MOST).round().astype(int))]


def multiples_section(service: StudyService, run: Run, setting: Setting) -> None:
    """Choose a choice, and see all of its values side by side.

    Nothing else of the setting changes: where the values are stored with different timesteps or dimensions, all are
    reduced to the smallest.
    """
    method = METHODS[setting.method]
    offered = {n: values_of(service, setting, n) for n in CHOICES if method.takes(n) and n != "normaliser"}
    names = [NONE, *(name for name, values in offered.items() if len(values) > 1)]
    chosen = st.selectbox("Side by side: all values of", names, key="multiples",
                          format_func=lambda n: n if n == NONE else CHOICES[n].label)  # fmt: skip
    if chosen == NONE:
        return
    settings = {value: changed(service.attributor, setting, chosen, value) for value in offered[chosen]}
    known = {value: found for value, found in settings.items() if found is not None}
    alike = ""
    if CHOICES[chosen].measured == "aligned" and known:
        reduced = zip(known, aligned(service.attributor, list(known.values())), strict=True)
        known = {value: one for value, one in reduced if stored(service.attributor, one)}
        if known:
            one = next(iter(known.values()))
            alike = f", all at K = {one.timesteps} and k = {one.projection_dim:,}"
    if not features_or_wait(service, run, list(known.values()), "multiples"):
        return
    table, kind = service.attributor.table, "generated" if run.settings is not None else "held-out"
    shown = []
    for value, one in known.items():
        found = service.answer(run, one, ranking, SHOWN)
        score = service.lds_now(one, kind)
        measured = "" if score is None else f" · LDS {100 * score.mean:.0f}"
        shown.append({
            "title": f"{CHOICES[chosen].shown(value)}{measured}",
            "tiles": tiles(found.proponents, table),
        })  # fmt: skip
    lanes(shown, "multiples-lanes")
    caption = f"Each column is {setting.title} with another {CHOICES[chosen].label}{alike}."
    st.caption(plain(f"{caption} Lines join the same image."))
