"""Charts as Plotly figures of plain data; knows nothing of what they show.

Colors are names of CSS variables, which the page's script replaces, so that a chart follows light
and dark. Texts from data are shown as they are, never as markup.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

Figure = dict[str, Any]

Mark = Literal["line", "points", "both"]

INK, MUTED, GRID = "--ink", "--muted", "--grid"
COLORS = tuple(f"--series-{i}" for i in range(1, 7))
"""For series that are told apart."""

_ROW_PX = 26
_AXES_PX = 104
_MOST_LABEL = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A scale of numbers.

    Attributes:
        title: With its unit.
        is_log: Whether equal factors are equally far apart.
        format: Of its numbers, in D3's notation: ",d" whole, ".0%" shares.
        bounds: First and last number; None lets the data decide.
        starts_at_zero: Whether 0 is on it.
        ticks: Numbers that are written; empty lets the data decide.
    """

    title: str
    is_log: bool = False
    format: str = ""
    bounds: tuple[float, float] | None = None
    starts_at_zero: bool = False
    ticks: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Numbers of one name.

    Attributes:
        name: In the legend and beside the pointer.
        values: One a place.
        places: Where they stand; in a chart of rows 0, 1, ...
        color: A CSS variable.
        low: With `high`, the interval around each value; empty without one.
        high: See `low`.
        is_faint: Whether it is background: thin, and not in the legend.
        is_step: Whether values hold for an interval rather than for a point.
        is_filled: Whether the area under the line is filled.
        is_dashed: Whether the line is: a limit, or numbers of others.
        mark: Of a line chart's values.
        labels: Words beside the points.
    """

    name: str
    values: Sequence[float | None]
    places: Sequence[float] = ()
    color: str = COLORS[0]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_faint: bool = False
    is_step: bool = False
    is_filled: bool = False
    is_dashed: bool = False
    mark: Mark = "line"
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure with its words and its numbers.

    Attributes:
        title: What it shows.
        figure: Plotly's data and layout.
        height_px: Of the figure; its width is the page's.
        series: Its numbers.
        x: Title of the axis below.
        y: Title of the axis beside; empty where rows have names.
        rows: Names of the places, where these are no numbers.
        note: How to read it.
    """

    title: str
    figure: Figure
    height_px: int
    series: Sequence[Series]
    x: str
    y: str = ""
    rows: Sequence[str] = ()
    note: str = ""


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, note: str = "", height_px: int = 340
) -> Chart:
    """Lines over numbers, an interval around a line as a band."""
    data: list[Figure] = []
    for one in series:
        if one.low:
            data += _band(one)
        data.append(_line(one, x, y) | {"showlegend": not one.is_faint and len(series) > 1})
    places = [place for one in series for place in one.places]
    values = [value for one in series for value in (*one.values, *one.low, *one.high)]
    figure = _figure(data, xaxis=_axis(x, places), yaxis=_axis(y, values))
    return Chart(
        title=title,
        figure=figure,
        height_px=height_px,
        series=series,
        x=x.title,
        y=y.title,
        note=note,
    )


def bar_chart(
    title: str,
    groups: Sequence[str],
    series: Sequence[Series],
    x: str,
    y: Axis,
    *,
    members: Sequence[str] = (),
    note: str = "",
    height_px: int = 340,
) -> Chart:
    """Bars of stacked series.

    Args:
        title: What it shows.
        groups: Name of each bar, or, with members, of the group it stands in.
        series: One value a bar.
        x: Title of the axis below.
        y: Of the values.
        members: Name of each bar in its group; empty: a bar is a group of its own.
        note: How to read it.
        height_px: Of the figure.
    """
    names = [_plain(name) for name in groups]
    places = [names, [_plain(name) for name in members]] if members else names
    data = [
        {
            "type": "bar",
            "name": _plain(one.name),
            "x": places,
            "y": list(one.values),
            "marker": {"color": one.color},
            "showlegend": True,
            "hovertemplate": _hover("", y.format),
        }
        for one in series
    ]
    kind = {"type": "multicategory", "dividercolor": GRID} if members else {"type": "category"}
    below = _axis(Axis(title=x)) | kind
    figure = _figure(data, xaxis=below, yaxis=_axis(y))
    figure["layout"] |= {"barmode": "stack", "bargap": 0.35}
    rows = [f"{a}, {b}" for a, b in zip(groups, members, strict=True)] if members else groups
    return Chart(
        title=title,
        figure=figure,
        height_px=height_px,
        series=series,
        x=x,
        y=y.title,
        rows=rows,
        note=note,
    )


def dot_chart(
    title: str, rows: Sequence[str], series: Sequence[Series], x: Axis, *, note: str = ""
) -> Chart:
    """Dots on a row each, an interval as a whisker, a faint series as a tick; first row on top."""
    data = []
    for one in series:
        tick = {"symbol": "line-ns", "line": {"width": 2, "color": one.color}}
        symbol = tick if one.is_faint else {}
        trace: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(one.name),
            "x": list(one.values),
            "y": list(range(len(rows))),
            "cliponaxis": False,
            "marker": {"color": one.color, "size": 10, "opacity": 0.85, **symbol},
            "showlegend": len(series) > 1,
            "customdata": [_plain(row) for row in rows],
            "hovertemplate": _row_hover(x.format),
        }
        if one.low:
            values = [
                (v or 0, low, high)
                for v, low, high in zip(one.values, one.low, one.high, strict=True)
            ]
            trace["error_x"] = {
                "type": "data",
                "array": [high - value for value, _, high in values],
                "arrayminus": [value - low for value, low, _ in values],
                "color": one.color,
                "thickness": 1.5,
                "width": 3,
            }
        data.append(trace)
    figure = _figure(data, xaxis=_axis(x), yaxis=_rows_axis(rows))
    return Chart(
        title=title,
        figure=figure,
        height_px=_AXES_PX + _ROW_PX * len(rows),
        series=series,
        x=x.title,
        rows=rows,
        note=note,
    )


_MODES = {"line": "lines", "points": "markers", "both": "lines+markers"}


def _line(one: Series, x: Axis, y: Axis) -> Figure:
    line = {"color": one.color, "width": 1 if one.is_faint else 2}
    line |= {"shape": "hvh"} if one.is_step else {}
    line |= {"dash": "dash"} if one.is_dashed else {}
    trace: Figure = {
        "type": "scatter",
        "mode": _MODES[one.mark],
        "name": _plain(one.name),
        "x": list(one.places),
        "y": list(one.values),
        "line": line,
        "hovertemplate": _hover(x.format, y.format),
    }
    if one.is_filled:
        trace |= {"fill": "tozeroy", "fillcolor": f"{one.color}-faint"}
    if one.mark != "line":
        trace |= {"marker": {"color": one.color, "size": 7}, "cliponaxis": False}
    if one.labels:
        trace["mode"] += "+text"
        trace |= {
            "text": [_plain(label) for label in one.labels],
            "textposition": "top center",
            "textfont": {"color": MUTED, "size": 11},
        }
    return trace


def _rows_axis(rows: Sequence[str]) -> Figure:
    return {
        "tickvals": list(range(len(rows))),
        "ticktext": [_plain(_short(row)) for row in rows],
        "range": [len(rows) - 0.5, -0.5],
        "automargin": True,
        "ticks": "outside",
        "ticklen": 7,
        "tickcolor": "--card",
        "zeroline": False,
        "gridcolor": GRID,
        "fixedrange": True,
    }


def _figure(data: list[Figure], *, xaxis: Figure, yaxis: Figure) -> Figure:
    has_legend = any(trace["showlegend"] for trace in data)
    layout = {
        "xaxis": xaxis,
        "yaxis": yaxis,
        "font": {"color": INK, "size": 12},
        "paper_bgcolor": "--card",
        "plot_bgcolor": "--card",
        "margin": {"l": 8, "r": 28, "t": 34 if has_legend else 10, "b": 8},
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "bottom",
        },
        "hoverlabel": {"bgcolor": "--page", "bordercolor": GRID, "font": {"color": INK}},
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def _axis(axis: Axis, numbers: Iterable[float | None] = ()) -> Figure:
    out: Figure = {
        "title": {"text": _plain(axis.title), "standoff": 8, "font": {"color": MUTED, "size": 12}},
        "type": "log" if axis.is_log else "linear",
        "tickformat": axis.format,
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
    }
    if axis.is_log:
        out |= {"dtick": _log_step(numbers), "minor": {"showgrid": False}}
    if axis.bounds is not None:
        out["range"] = list(axis.bounds)
    if axis.starts_at_zero:
        out["rangemode"] = "tozero"
    if axis.ticks:
        out |= {"tickmode": "array", "tickvals": list(axis.ticks)}
    return out


def _log_step(numbers: Iterable[float | None]) -> int | str:
    """Powers of ten where there are two or more; else 1, 2 and 5 times them."""
    shown = [math.log10(number) for number in numbers if number]
    return "D2" if shown and max(shown) - min(shown) < 2 else 1


def _band(series: Series) -> list[Figure]:
    """The interval around a line: an unseen upper bound and the area from the lower one to it."""
    edge = {
        "type": "scatter",
        "mode": "lines",
        "x": list(series.places),
        "line": {"width": 0, "color": series.color},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    filled = {"fill": "tonexty", "fillcolor": f"{series.color}-faint"}
    return [{**edge, "y": list(series.low)}, {**edge, **filled, "y": list(series.high)}]


def _hover(x_format: str, y_format: str) -> str:
    x, y = f"%{{x{_suffix(x_format)}}}", f"%{{y{_suffix(y_format)}}}"
    return f"<b>%{{fullData.name}}</b><br>{x}: {y}<extra></extra>"


def _row_hover(x_format: str) -> str:
    return f"<b>%{{customdata}}</b><br>%{{fullData.name}}: %{{x{_suffix(x_format)}}}<extra></extra>"


def _suffix(number_format: str) -> str:
    """Two digits more than a tick has, where a tick shows a share."""
    return f":{'.2%' if number_format.endswith('%') else number_format}" if number_format else ""


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LABEL else text[: _MOST_LABEL - 1] + "…"


def _plain(text: str) -> str:
    """Text that Plotly, which reads markup, shows as it is."""
    return escape(text, quote=False)
