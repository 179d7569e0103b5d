"""Plotly figures of what was measured: the LDS of methods, and what removals change."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dtrak.app.evaluate import Curve
from dtrak.app.figures import BASELINE, NEGATIVE, NEUTRAL, POSITIVE, WHISKER

LOG_TICKS = {"exponentformat": "power", "dtick": 1}


def lds_bars(names: Sequence[str], lds: Sequence[float], low: Sequence[float], high: Sequence[float],
             oracle: Sequence[float] = (), colour: str = POSITIVE,
             baselines: Collection[str] = ()) -> go.Figure:  # fmt: skip
    """LDS × 100 of each method with intervals, the first at the top.

    Args:
        oracle: LDS × 100 at the oracle λ, drawn as separate marks.
        baselines: names of methods that are drawn in another colour.
    """
    names, count = list(names)[::-1], len(names)
    values, lower, upper = (np.array(v)[::-1] for v in (lds, low, high))
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=values,
        orientation="h",
        marker_color=[
            (BASELINE if name in baselines else colour) if bottom > 0 else NEGATIVE if top < 0 else NEUTRAL
            for name, bottom, top in zip(names, lower, upper, strict=True)
        ],
        error_x={"array": upper - values, "arrayminus": values - lower, **WHISKER},
        name="LDS × 100",
        hovertemplate="%{y}<br>%{x:.1f}<extra></extra>",
    )
    if len(oracle):
        figure.add_scatter(
            y=names,
            x=np.array(oracle)[::-1],
            mode="markers",
            marker={"symbol": "diamond-open", "size": 9, "color": NEGATIVE, "line": {"width": 2}},
            name="oracle λ",
            hovertemplate="%{y}, oracle λ<br>%{x:.1f}<extra></extra>",
        )
    figure.add_vline(x=0, line_width=1, line_color=NEUTRAL)
    figure.update_layout(
        height=110 + 24 * count,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis_title="LDS × 100",
        yaxis={"automargin": True},
        legend={"orientation": "h", "y": -60 / (110 + 24 * count), "yanchor": "top"},
    )
    return figure


def cost_figure(
    names: Sequence[str], seconds: Sequence[float], lds: Sequence[float], low: Sequence[float], high: Sequence[float],
    baselines: Collection[str] = (), chance: tuple[float, float] | None = None,
) -> go.Figure:  # fmt: skip
    """LDS × 100 of methods over the seconds that one query takes.

    Args:
        baselines: names of methods that are drawn in another colour.
        chance: lowest and highest LDS × 100 of the negative controls, drawn as a band.
    """
    figure = go.Figure()
    if chance is not None:
        figure.add_hrect(y0=chance[0], y1=chance[1], fillcolor=NEUTRAL, opacity=0.18, line_width=0,
                         annotation_text="negative controls", annotation_position="bottom right")  # fmt: skip
    for colour, mine in ((POSITIVE, False), (BASELINE, True)):
        rows = [i for i, name in enumerate(names) if (name in baselines) == mine]
        values, lower, upper = (np.array([v[i] for i in rows]) for v in (lds, low, high))
        figure.add_scatter(
            x=[seconds[i] for i in rows], y=values, mode="markers+text", text=[names[i] for i in rows],
            textposition="top center", textfont={"size": 10}, marker={"size": 9, "color": colour},
            error_y={"array": upper - values, "arrayminus": values - lower, **WHISKER},
            name="images or labels alone" if mine else "methods",
            hovertemplate="%{text}<br>%{x:.3g} s, LDS %{y:.1f}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=0, line_width=1, line_color=NEUTRAL)
    figure.update_layout(
        height=420, margin={"l": 8, "r": 8, "t": 8, "b": 8}, yaxis_title="LDS × 100",
        xaxis={"type": "log", "title": "seconds for one query, its features included"},
        legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    return figure


def lds_curves(found: Sequence[Curve], title: str, logarithmic: bool, ordered: bool = True) -> go.Figure:
    """LDS × 100 of some methods over the values of one choice, with intervals where there are any.

    Args:
        title: of the horizontal axis.
        ordered: whether to connect neighbouring values.
    """
    figure = go.Figure()
    for curve, colour in zip(found, (POSITIVE, NEGATIVE, NEUTRAL, "#3b9b6d"), strict=False):
        values = 100 * np.array(curve.lds)
        error: dict[str, Any] = {}
        if curve.low:
            upper, lower = 100 * np.array(curve.high) - values, values - 100 * np.array(curve.low)
            error = {"error_y": {"array": upper, "arrayminus": lower, "thickness": 1.2, "width": 4}}
        figure.add_scatter(
            x=list(curve.values),
            y=values,
            mode="lines+markers" if ordered else "markers",
            marker={"size": 9},
            name=curve.name,
            line={"color": colour},
            hovertemplate="%{x}<br>LDS %{y:.1f}<extra></extra>",
            **error,
        )
    figure.add_hline(y=0, line_width=1, line_color=NEUTRAL)
    figure.update_layout(
        height=340,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"title": title, "type": "log" if logarithmic else "category"} | (LOG_TICKS if logarithmic else {}),
        yaxis_title="LDS × 100",
        legend={"orientation": "h", "y": -0.25},
    )
    return figure


def distance_boxes(values: Mapping[str, Sequence[float]], title: str) -> go.Figure:
    """Box plots of a value per query, by method, with every query as a point."""
    figure = go.Figure()
    for number, (name, found) in enumerate(values.items()):
        figure.add_box(
            y=list(found),
            name=name,
            boxpoints="all",
            jitter=0.4,
            pointpos=0,
            marker={"size": 5, "opacity": 0.7},
            line={"width": 1.5},
            marker_color=NEUTRAL if number == 0 else POSITIVE,
            hovertemplate="%{y:.3g}<extra></extra>",
        )
    figure.update_layout(height=300, margin={"l": 8, "r": 8, "t": 8, "b": 8}, yaxis_title=title, showlegend=False)
    return figure
