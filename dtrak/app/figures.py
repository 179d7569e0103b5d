"""Plotly figures, built by pure functions."""

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int, UInt8

from dtrak.analysis.evidence import Split
from dtrak.analysis.ledger import Ledger
from dtrak.analysis.map import Map
from dtrak.app.views import Share, format_score
from dtrak.data import Table
from dtrak.gradients.region import Region
from dtrak.methods.ranking import Ranking
from dtrak.utils.images import data_url

Scores = Float[np.ndarray, " n"]
WHISKER = {"thickness": 1.5, "width": 4, "color": "#e0a43a"}
BOX_POINTS = 16  # of an image in which a box is drawn, a side
MOST_COLOURS = 10  # groups with a colour of their own on the map
HISTOGRAM_BINS = 61  # odd: one of them is around zero
POSITIVE, NEGATIVE, NEUTRAL, BASELINE = "#2f6fdb", "#c4532d", "#8a93a3", "#3f9a86"


def literal(text: str) -> str:
    """Text with HTML escaped: Plotly reads tags, links among them, in labels and titles."""
    return html.escape(text, quote=False)


def score_strip(ranking: Ranking) -> go.Figure:
    """A low histogram of all scores with log counts and marks for what is listed; a range of scores can be boxed.

    In large studies the scores are those of a random sample of the training images, as the axis then says.
    """
    scores, images = ranking.sample, ranking.table.train_size
    listed = [abs(s.score) for s in (*ranking.proponents[:1], *ranking.opponents[:1])]
    limit = 1.05 * (max(float(np.abs(scores).max()), *listed, 0.0) or 1.0)
    drawn = f"{len(scores):,} of {images:,} training images, drawn at random"
    counts, edges = np.histogram(scores, HISTOGRAM_BINS, (-limit, limit))  # the browser gets counts only
    figure = go.Figure()
    figure.add_bar(
        x=(edges[1:] + edges[:-1]) / 2,
        y=counts,
        width=2 * limit / HISTOGRAM_BINS,
        marker_color=NEUTRAL,
        hovertemplate="%{y} images<br>score %{x}<extra></extra>",
    )
    for side, colour in ((ranking.proponents, POSITIVE), (ranking.opponents, NEGATIVE)):
        figure.add_scatter(
            x=[s.score for s in side],
            y=[0.7] * len(side),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 14, "color": colour, "line": {"width": 2}},
            customdata=[[s.record.id, literal(s.record.caption or s.record.id), format_score(s.score)] for s in side],
            hovertemplate="%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        )
    figure.add_vline(x=0, line_width=1, line_color=NEUTRAL)
    figure.update_layout(
        height=120,
        margin={"l": 8, "r": 8, "t": 4, "b": 4},
        bargap=0.05,
        showlegend=False,
        dragmode="select",
        selectdirection="h",
        xaxis={
            "title": f"{ranking.unit} of {drawn if len(scores) < images else f'all {images:,} training images'}",
            "title_standoff": 2,
        },
        yaxis={"type": "log", "dtick": 1, "title": "images", "fixedrange": True},
    )
    return figure


def picture_to_box(pixels: UInt8[np.ndarray, "r r 3"], region: Region | None) -> go.Figure:
    """An image on which a box can be drawn; the region that is asked about is outlined."""
    side = len(pixels)
    figure = go.Figure()
    places = [place + 0.5 for place in range(0, side, max(1, side // BOX_POINTS))]
    figure.add_scatter(  # invisible: a figure needs points to report a box
        x=[x for x in places for _ in places], y=places * len(places), mode="markers", marker={"opacity": 0, "size": 1},
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_layout_image(source=data_url(pixels, 256), xref="x", yref="y", x=0, y=0, sizex=side, sizey=side,
                            sizing="stretch", layer="below")  # fmt: skip
    if region is not None:
        corners = {"x0": region.left, "x1": region.right, "y0": region.top, "y1": region.bottom}
        figure.add_shape(type="rect", **{k: v * side for k, v in corners.items()}, line={"color": NEGATIVE, "width": 3})
    axis = {"range": [0, side], "visible": False, "fixedrange": True}
    figure.update_layout(
        height=240, width=240, margin={"l": 0, "r": 0, "t": 0, "b": 0}, dragmode="select", showlegend=False,
        xaxis=axis, yaxis=axis | {"range": [side, 0], "scaleanchor": "x"},
    )  # fmt: skip
    return figure


def map_figure(found: Map, table: Table, values: Sequence[str] | Sequence[float], title: str) -> go.Figure:
    """The map, coloured by words or numbers; ``customdata`` starts with the id of the image."""
    records = [table.records[row] for row in found.rows]
    told = [[r.id, literal(r.caption or r.id), literal(r.creator or "unknown creator")] for r in records]
    hover = "%{customdata[1]}<br>%{customdata[2]}<extra></extra>"
    figure = go.Figure()
    if isinstance(values[0], str):
        counted = Counter(values).most_common()
        common = [name for name, _ in counted[:MOST_COLOURS]]
        for number, name in enumerate([*common, *(["others"] if len(counted) > MOST_COLOURS else [])]):
            rest = number == MOST_COLOURS
            mine = [i for i, v in enumerate(values) if (v not in common if rest else v == name)]
            marker: dict[str, Any] = {"size": 7, **({"color": NEUTRAL} if rest else {})}
            figure.add_scattergl(
                x=found.places[mine, 0], y=found.places[mine, 1], mode="markers", name=literal(str(name)),
                marker=marker, customdata=[told[i] for i in mine], hovertemplate=hover,
            )  # fmt: skip
    else:
        numbers: Any = values
        scale = "RdBu_r" if min(numbers) < 0 else "Viridis"
        limit = max(abs(v) for v in numbers) or 1.0
        marker = {"size": 7, "color": numbers, "colorscale": scale, "showscale": True, "colorbar": {"title": title}}
        marker |= {"cmin": -limit, "cmax": limit} if min(numbers) < 0 else {}
        figure.add_scattergl(x=found.places[:, 0], y=found.places[:, 1], mode="markers", marker=marker, customdata=told,
                             hovertemplate=hover, showlegend=False)  # fmt: skip
    axis = {"visible": False}
    figure.update_layout(
        height=520, margin={"l": 0, "r": 0, "t": 0, "b": 0}, dragmode="lasso", xaxis=axis,
        yaxis=axis | {"scaleanchor": "x"}, legend={"title": title, "orientation": "h", "y": -0.02, "yanchor": "top"},
    )  # fmt: skip
    return figure


def part_bars(timesteps: Sequence[int], parts: Sequence[float]) -> go.Figure:
    """The parts of one score by timestep, in a small figure."""
    colours = [POSITIVE if part > 0 else NEGATIVE for part in parts]
    figure = go.Figure()
    figure.add_bar(
        x=[str(t) for t in timesteps],
        y=list(parts),
        marker_color=colours,
        hovertemplate="timestep %{x}<br>%{y:.3g}<extra></extra>",
    )
    figure.update_layout(
        height=110,
        margin={"l": 4, "r": 4, "t": 4, "b": 4},
        xaxis={"type": "category", "title": "score by timestep", "title_standoff": 2, "nticks": 5},
        yaxis={"visible": False},
    )
    return figure


def share_bars(shares: list[Share], limit: int = 8) -> go.Figure:
    """Each group's share of the positive mass, beside its share of the training images."""
    shown = shares[:limit]
    names = [literal(f"{s.name} ({s.count})") for s in shown]
    return _against_data(names, [s.share for s in shown], [s.expected for s in shown])


def credit_bars(found: Ledger, limit: int = 12) -> go.Figure:
    """What each creator is credited with, with its interval, beside the share of unrelated images; then the rest."""
    shown, others = found.credits[:limit], found.credits[limit:]
    names = [literal(f"{c.creator} ({c.images})") for c in shown]
    intervals = [(c.low, c.high) for c in shown]
    figure = _against_data(
        names, [c.credited for c in shown], [c.expected for c in shown], intervals, ("credited", "of unrelated images")
    )
    figure.add_bar(y=["unattributed"], x=[found.unattributed], orientation="h", marker_color=NEUTRAL,
                   name="unattributed", hovertemplate="%{x:.1%} unattributed<extra></extra>")  # fmt: skip
    if others:
        names.append(f"{len(others)} others")
        figure.add_bar(y=names[-1:], x=[sum(c.credited for c in others)], orientation="h", marker_color=POSITIVE,
                       showlegend=False)  # fmt: skip
    order = ["unattributed", *names[::-1]]
    figure.update_layout(barmode="overlay", yaxis={"categoryorder": "array", "categoryarray": order})
    return figure


def _against_data(
    names: Sequence[str],
    shares: Sequence[float],
    expected: Sequence[float],
    intervals: Sequence[tuple[float, float]] = (),
    words: tuple[str, str] = ("share of positive scores", "share of the training images"),
) -> go.Figure:
    """Shares, the first at the top, each beside what was to be expected."""
    names, values = list(names)[::-1], np.array(shares)[::-1]
    error: dict[str, Any] = {}
    if intervals:
        low, high = np.array(intervals)[::-1].T
        error = {
            "error_x": {"array": np.maximum(high - values, 0), "arrayminus": np.maximum(values - low, 0), **WHISKER}
        }
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=values,
        orientation="h",
        marker_color=POSITIVE,
        name=words[0],
        hovertemplate=f"%{{x:.1%}} {words[0]}<extra></extra>",
        **error,
    )
    figure.add_scatter(
        y=names,
        x=list(expected)[::-1],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 14, "color": NEUTRAL, "line": {"width": 3}},
        name=words[1],
        hovertemplate=f"%{{x:.1%}} {words[1]}<extra></extra>",
    )
    height = 100 + 28 * len(names)
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"tickformat": ".0%", "rangemode": "tozero"},
        legend={"orientation": "h", "y": -50 / height, "yanchor": "top"},
    )
    return figure


def damping_figure(powers: Sequence[float], curve: Sequence[float], current: float | None) -> go.Figure:
    """Rank-biased overlap of the ranking at each λ = 10^power with the current one.

    Args:
        curve: the overlap at each power, from 0 to 1.
        current: λ, marked by a line.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[10.0**p for p in powers],
        y=list(curve),
        mode="lines+markers",
        line={"color": POSITIVE},
        hovertemplate="λ = %{x:.3g}<br>rank-biased overlap %{y:.2f}<extra></extra>",
    )
    if current is not None:
        figure.add_vline(x=current, line_width=2, line_color=NEGATIVE)
    figure.update_layout(
        height=190,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        showlegend=False,
        xaxis={"type": "log", "title": "λ", "exponentformat": "power"},
        yaxis={"range": [0, 1.05], "title": "rank-biased overlap"},
    )
    return figure


def score_scatter(
    rows: Int[np.ndarray, " p"], a: Scores, b: Scores, names: tuple[str, str], table: Table, shown: set[int]
) -> go.Figure:
    """Scores of two lanes against each other, one point per training image; ``customdata`` starts with its id.

    Args:
        rows: the training images, and a, b their scores.
        names: axis titles.
        shown: rows to highlight.
    """
    marked = np.isin(rows, list(shown))
    figure = go.Figure()
    for chosen, colour, size, name in (
        (~marked, NEUTRAL, 6, "other images"),
        (marked, POSITIVE, 10, "in either top list"),
    ):
        records = table.records.take(rows[chosen])
        told = zip(records.column("id"), records.column("caption"), strict=True)
        figure.add_scatter(
            x=a[chosen],
            y=b[chosen],
            mode="markers",
            marker={"color": colour, "size": size, "opacity": 0.75},
            name=name,
            customdata=[[sample, literal(caption or sample or "")] for sample, caption in told],
            hovertemplate="%{customdata[1]}<br>%{x:.3g} · %{y:.3g}<extra></extra>",
        )
    figure.update_layout(
        height=380,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"title": literal(names[0]), "zerolinecolor": NEUTRAL},
        yaxis={"title": literal(names[1]), "zerolinecolor": NEUTRAL},
        legend={"orientation": "h", "y": -0.2},
    )
    return figure


def split_bars(split: Split, rows: Sequence[int], names: Sequence[str], chosen: Sequence[str] = ()) -> go.Figure:
    """The parts of some training images' scores, stacked by sign; the parts of a bar sum to its score.

    Args:
        rows: of the training images in ``split``.
        names: of the training images.
        chosen: names of the parts to show in full colour; all if empty.
    """
    figure = go.Figure()
    count = max(len(split.names) - 1, 1)
    for number, name in enumerate(split.names):
        figure.add_bar(
            x=list(range(len(names))),
            y=split.scores[number, list(rows)],
            name=name,
            marker_color=f"hsl({int(225 - 205 * number / count)}, 62%, 52%)",
            opacity=1.0 if not chosen or name in chosen else 0.25,
            hovertemplate=f"{name}<br>%{{y:.3g}}<extra></extra>",
        )
    figure.add_hline(y=0, line_width=1, line_color=NEUTRAL)
    figure.update_layout(
        height=320,
        barmode="relative",
        xaxis={"tickvals": list(range(len(names))), "ticktext": [literal(name) for name in names]},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        yaxis_title="part of the score",
        legend={"orientation": "h", "y": -0.35, "font": {"size": 11}},
    )
    return figure
