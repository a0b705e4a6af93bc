"""Figures hold what was given, and Plotly's own schema finds nothing wrong in them."""

import re
from html.parser import HTMLParser

import pytest

from fastdlrm.report.charts import COLORS, Axis, Series, bar_chart, dot_chart, line_chart
from tests.builders import ROOT

go = pytest.importorskip("plotly.graph_objects", reason="needs the extra `report`")

X, Y = Axis(title="size", is_log=True, format=",d"), Axis(title="share", format=".0%")
LINES = [
    Series(name="a", places=[1, 10], values=[0.1, 0.2], low=[0, 0.1], high=[0.2, 0.3]),
    Series(name="b", places=[1, 10], values=[0.4, None], is_step=True, is_filled=True),
    Series(name="c", places=[2, 3], values=[0.4, 0.5], is_faint=True, color="--background"),
]
DOTS = [
    Series(name="rate", values=[0.1, 0.3], low=[0.05, 0.2], high=[0.2, 0.5]),
    Series(name="chance", values=[0.2, None], is_faint=True),
]
BARS = [Series(name="fc", values=[0.4, 0.7]), Series(name="other", values=[0.6, None])]
POINTS = [
    Series(name=color, places=[1], values=[2], low=[1], high=[3], color=color, mark=mark, **more)
    for color, mark, more in zip(
        COLORS,
        ("line", "points", "both") * 2,
        ({"is_dashed": True}, {"labels": ["64"]}, {}) * 2,
        strict=True,
    )
]


def colored(value):
    """The figure as the page's script makes it: names of colors replaced by colors."""
    if isinstance(value, dict):
        return {
            key: "#123456" if key.endswith("color") and isinstance(item, str) else colored(item)
            for key, item in value.items()
        }
    return [colored(item) for item in value] if isinstance(value, list) else value


def variables(value):
    """All names of colors in a figure."""
    if isinstance(value, dict):
        own = {v for k, v in value.items() if k.endswith("color") and isinstance(v, str)}
        return own.union(*map(variables, value.values()))
    return set().union(*map(variables, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    "chart",
    [
        line_chart("t", LINES, X, Y),
        line_chart("t", LINES[:1], Axis(title="x", bounds=(0, 1)), Y, height_px=200),
        dot_chart("t", ["one", "two"], DOTS, Axis(title="x", starts_at_zero=True)),
        dot_chart("t", ["one", "two"], DOTS[:1], Axis(title="x")),
        line_chart("t", POINTS, Axis(title="x", is_log=True, ticks=(1, 4)), Y),
        bar_chart("t", ["1", "16"], BARS, "x", Y),
        bar_chart("t", ["1", "1"], BARS, "x", Y, members=["A", "B"]),
    ],
    ids=["lines", "line", "dots", "one series of dots", "points", "bars", "groups of bars"],
)
def test_figures_are_valid_and_their_colors_exist(chart):
    go.Figure(colored(chart.figure))  # raises on what Plotly does not know
    style = (ROOT / "src" / "fastdlrm" / "report" / "page.css").read_text()
    assert variables(chart.figure) <= set(re.findall(r"^\s*(--[\w-]+):", style, re.MULTILINE))


def test_a_band_lies_around_its_line():
    low, high, line = line_chart("t", LINES[:1], X, Y).figure["data"]
    assert (low["y"], high["y"], line["y"]) == ([0, 0.1], [0.2, 0.3], [0.1, 0.2])
    assert high["fill"] == "tonexty"
    assert [trace["showlegend"] for trace in (low, high)] == [False, False]


def test_what_a_chart_is_of_stays_with_it():
    chart = bar_chart("t", ["1", "1"], BARS, "x", Y, members=["A", "B"])
    assert (chart.x, chart.y, list(chart.rows)) == ("x", "share", ["1, A", "1, B"])
    assert chart.figure["data"][0]["x"] == [["1", "1"], ["A", "B"]]
    dots = dot_chart("t", ["one", "two"], DOTS, X)
    assert (dots.x, dots.y, dots.rows) == ("size", "", ["one", "two"])
    lines = line_chart("t", POINTS, X, Y)
    assert lines.series == POINTS
    assert [trace["mode"] for trace in lines.figure["data"][2::3]] == [
        *("lines", "markers+text", "lines+markers") * 2
    ]


@pytest.mark.parametrize(("most", "step"), [(50, "D2"), (1000, 1)])
def test_a_short_logarithmic_axis_has_numbers_between_powers_of_ten(most, step):
    one = Series(name="a", places=[1, most], values=[1, 1])
    assert line_chart("t", [one], X, Y).figure["layout"]["xaxis"]["dtick"] == step


def test_whiskers_reach_to_the_bounds():
    trace = dot_chart("t", ["one", "two"], DOTS[:1], X).figure["data"][0]
    assert trace["error_x"]["array"] == pytest.approx([0.1, 0.2])
    assert trace["error_x"]["arrayminus"] == pytest.approx([0.05, 0.1])


def test_rows_of_one_name_stay_apart_and_the_first_is_on_top():
    chart = dot_chart("t", ["same", "same", "x" * 50], DOTS[:1], X)
    axis = chart.figure["layout"]["yaxis"]
    assert (axis["tickvals"], axis["range"]) == ([0, 1, 2], [2.5, -0.5])
    assert axis["ticktext"] == ["same", "same", "x" * 31 + "…"]


class _Tags(HTMLParser):
    def handle_starttag(self, tag, attrs):
        raise AssertionError(f"markup: <{tag}>")


def test_names_are_text_not_markup():
    name = '& <a href="https://example.org">b</a>'
    dots = dot_chart("t", [name], [Series(name=name, values=[1.0])], Axis(title=name)).figure
    lines = line_chart("t", [Series(name=name, places=[1], values=[1.0])], X, Y).figure
    for text in (
        dots["data"][0]["name"],
        dots["data"][0]["customdata"][0],
        dots["layout"]["yaxis"]["ticktext"][0],
        dots["layout"]["xaxis"]["title"]["text"],
        lines["data"][0]["name"],
    ):
        _Tags().feed(text)
        assert "&amp;" in text
