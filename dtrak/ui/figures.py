"""Plotly figures, built by pure functions; a page only shows them."""

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from dtrak.attribution import Attribution
from dtrak.ui.views import Share, format_score

POSITIVE, NEGATIVE, NEUTRAL = "#2f6fdb", "#c4532d", "#8a93a3"


def score_histogram(attribution: Attribution) -> go.Figure:
    """All scores, log counts, with the shown proponents and opponents marked on one signed scale."""
    scores: Float[np.ndarray, " n"] = attribution.scores
    limit = float(np.abs(scores).max()) or 1.0
    figure = go.Figure()
    figure.add_histogram(
        x=scores,
        xbins={"start": -limit * 1.05, "end": limit * 1.05, "size": limit * 2.1 / 61},
        marker_color=NEUTRAL,
        name="all training images",
        hovertemplate="%{y} images<br>score %{x}<extra></extra>",
    )
    for side, name, colour in (
        (attribution.proponents, "proponents shown", POSITIVE),
        (attribution.opponents, "opponents shown", NEGATIVE),
    ):
        figure.add_scatter(
            x=[s.score for s in side],
            y=[0.7] * len(side),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 16, "color": colour, "line": {"width": 2}},
            name=name,
            customdata=[[s.record.id, s.record.caption, format_score(s.score)] for s in side],
            hovertemplate="%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        )
    figure.add_vline(x=0, line_width=1, line_color=NEUTRAL)
    figure.update_layout(
        height=260,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        bargap=0.05,
        xaxis_title="score",
        yaxis={"title": "images (log)", "type": "log"},
        legend={"orientation": "h", "y": -0.35},
    )
    return figure


def share_bars(shares: list[Share], limit: int = 8) -> go.Figure:
    """Share of the positive mass by group, beside each group's share of the training set."""
    shown = shares[:limit][::-1]
    names = [f"{s.name} ({s.count})" for s in shown]
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=[s.share for s in shown],
        orientation="h",
        marker_color=POSITIVE,
        name="share of positive mass",
        hovertemplate="%{x:.1%} of positive mass<extra></extra>",
    )
    figure.add_scatter(
        y=names,
        x=[s.expected for s in shown],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 14, "color": NEUTRAL, "line": {"width": 3}},
        name="share of the training set",
        hovertemplate="%{x:.1%} of the training set<extra></extra>",
    )
    figure.update_layout(
        height=90 + 28 * len(shown),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"tickformat": ".0%", "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.25},
    )
    return figure
