"""A page's structure, and that nothing from data becomes markup."""

import importlib.util
import json
import re
from html.parser import HTMLParser

import pytest

from fastdlrm.errors import ConfigError
from fastdlrm.report.charts import Axis, Series, dot_chart
from fastdlrm.report.page import (
    Fold,
    Grid,
    Page,
    Paragraph,
    Section,
    Share,
    Table,
    Tiles,
    check_output,
)
from tests.every_kind import HOSTILE

CHART = dot_chart(HOSTILE, [HOSTILE], [Series(name=HOSTILE, values=[0.5])], Axis(title=HOSTILE))
TABLE = Table(columns=(HOSTILE, "share"), rows=[(HOSTILE, Share(0.25)), ("none", Share(None))])


class Reader(HTMLParser):
    """Collects elements, attributes and text, scripts aside."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script" and not self.scripts[-1]:
            self.scripts[-1] = data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def read():
    blocks = [
        Paragraph(HOSTILE),
        Tiles([(HOSTILE, HOSTILE)]),
        TABLE,
        Grid([CHART, Fold(HOSTILE, TABLE)]),
    ]
    page = Page(title=HOSTILE, subtitle=HOSTILE, sections=[Section(HOSTILE, blocks)])
    return Reader(page.html())


def test_what_comes_from_data_stays_text(read):
    assert "img" not in read.tags
    assert read.tags.count("script") == 3  # figures, Plotly, the page's own
    assert not any(name.startswith("on") for name, _ in read.attributes)
    # Title twice, subtitle, link, heading, paragraph, tile (2), tables (2 x 2), caption, summary.
    assert "".join(read.words).count(HOSTILE) == 14
    assert ("aria-label", HOSTILE) in read.attributes


def test_figures_survive_the_script_element(read):
    (figure,) = json.loads(read.scripts[0])
    assert figure == CHART.figure
    assert "<" not in read.scripts[0]


def test_nothing_is_loaded(read):
    urls = [value for name, value in read.attributes if name in ("src", "href")]
    assert urls == ["#section-0"]
    assert "link" not in read.tags
    policy = dict(read.attributes)["content"]
    assert policy.startswith("default-src 'none'")


def test_plotly_is_there_once_and_only_for_charts():
    page = Page(title="a", subtitle="b", sections=[Section("c", [Grid([CHART, CHART])])])
    assert page.html().count("* plotly.js v") == 1
    without = Page(title="a", subtitle="b", sections=[Section("c", [TABLE])]).html()
    assert "plotly.js v" not in without
    assert len(without) < 20_000


def test_shares():
    cells = [Share(0.0), Share(0.0004), Share(0.0005), Share(0.123), Share(1.0), Share(None)]
    page = Page(
        title="a",
        subtitle="b",
        sections=[Section("c", [Table(columns=["x"] * 6, rows=[cells], text_columns=())])],
    )
    found = re.findall(r"<td[^>]*>([^<]*)</td>", page.html())
    assert found == ["0", "&lt; 0.1%", "0.1%", "12.3%", "100.0%", ""]


def test_a_page_is_written_over_what_was_there(tmp_path):
    path = tmp_path / "new folder" / "page.html"
    Page(title="first", subtitle="", sections=[]).write(path)
    Page(title="second", subtitle="", sections=[]).write(path)
    assert "<title>second</title>" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a folder; name the HTML file to write"):
        check_output(tmp_path)


def test_without_plotly_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("fastdlrm.report.page.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need plotly; pip install 'fastdlrm\[report\]'"):
        check_output(tmp_path / "page.html")
    assert importlib.util.find_spec("plotly") is not None
