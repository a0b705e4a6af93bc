"""Charts as Plotly figures of plain data; knows nothing of what they show.

Colors are names of CSS variables, which the page's script replaces, so that a chart follows light
and dark. Texts from data are shown as they are, never as markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Figure = dict[str, Any]

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
    """

    title: str
    is_log: bool = False
    format: str = ""
    bounds: tuple[float, float] | None = None
    starts_at_zero: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure with its words.

    Attributes:
        title: What it shows.
        figure: Plotly's data and layout.
        height_px: Of the figure; its width is the page's.
        note: How to read it.
    """

    title: str
    figure: Figure
    height_px: int
    note: str = ""


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, note: str = "", height_px: int = 340
) -> Chart:
    """Lines over numbers, an interval around a line as a band."""
    data: list[Figure] = []
    for one in series:
        if one.low:
            data += _band(one)
        line = {"color": one.color, "width": 1 if one.is_faint else 2}
        line |= {"shape": "hvh"} if one.is_step else {}
        area = {"fill": "tozeroy", "fillcolor": f"{one.color}-faint"} if one.is_filled else {}
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": _plain(one.name),
                "x": list(one.places),
                "y": list(one.values),
                "line": line,
                "showlegend": not one.is_faint and len(series) > 1,
                "hovertemplate": _hover(x.format, y.format),
                **area,
            }
        )
    figure = _figure(data, xaxis=_axis(x), yaxis=_axis(y))
    return Chart(title=title, figure=figure, height_px=height_px, note=note)


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
    height_px = _AXES_PX + _ROW_PX * len(rows)
    return Chart(title=title, figure=figure, height_px=height_px, note=note)


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


def _axis(axis: Axis) -> Figure:
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
        out |= {"dtick": 1, "minor": {"showgrid": False}}
    if axis.bounds is not None:
        out["range"] = list(axis.bounds)
    if axis.starts_at_zero:
        out["rangemode"] = "tozero"
    return out


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
