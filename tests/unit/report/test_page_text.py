"""Markdown and plain data hold what the page holds, and nothing from data becomes markup."""

import json

import msgspec
import pytest

from fastdlrm.errors import ConfigError
from fastdlrm.report.charts import Axis, Series, line_chart
from fastdlrm.report.output import check, output_files, write
from fastdlrm.report.page import (
    Fold,
    Grid,
    Notes,
    Number,
    Page,
    Paragraph,
    Section,
    Share,
    Table,
    Tiles,
)
from fastdlrm.report.page_text import markdown, tree
from tests.every_kind import HOSTILE

CHART = line_chart(
    "Times",
    [Series(name="a", places=[1, 2], values=[3.0, None], low=[2.0, 2.0], high=[4.0, 4.0])],
    Axis(title="size"),
    Axis(title="ms"),
    note="Of a machine.",
)
TABLE = Table(
    columns=("name", "ms", "share"),
    rows=[("a|b", Number(1234.5678, ",.1f"), Share(0.25)), ("c", Number(None), Share(None))],
)
PAGE = Page(
    title="T",
    subtitle="S",
    sections=[
        Section("One", [Paragraph("words"), Tiles([("rows", "5")]), Grid([CHART])]),
        Section("Two", [TABLE, Fold("More", TABLE), Notes(["first", "second"])]),
    ],
)


def test_markdown():
    table = [
        "| name | ms | share |",
        "| :--- | ---: | ---: |",
        "| a\\|b | 1,234.6 | 25.0% |",
        "| c |  |  |",
    ]
    assert [line for line in markdown(PAGE).splitlines() if line] == [
        *("# T", "S", "## One", "words", "- rows: 5"),
        "**Times** (ms against size). Of a machine.",
        *("## Two", *table, "### More", *table, "- first", "- second"),
    ]


def test_plain_data_has_numbers():
    one, two = tree(PAGE)["sections"]
    (chart,) = one["blocks"][2]["blocks"]
    assert chart == {
        "kind": "chart",
        "title": "Times",
        "x": "size",
        "y": "ms",
        "note": "Of a machine.",
        "series": [
            {"name": "a", "x": [1, 2], "y": [3.0, None], "low": [2.0, 2.0], "high": [4.0, 4.0]}
        ],
    }
    assert two["blocks"][0]["rows"] == [["a|b", 1234.5678, 0.25], ["c", None, None]]
    assert two["blocks"][1]["title"] == "More"
    assert two["blocks"][2] == {"kind": "notes", "notes": ["first", "second"]}


def test_what_comes_from_data_stays_text():
    page = Page(title=HOSTILE, subtitle="_a_ `b` [c](d)", sections=[])
    text = markdown(page)
    assert "<img" not in text
    assert "<script" not in text
    assert "\\_a\\_ \\`b\\` \\[c\\](d)" in text
    assert "rows_scale" in markdown(Page(title="rows_scale", subtitle="", sections=[]))


def test_files_by_the_suffix(tmp_path):
    one = tmp_path / "sub" / "page.md"
    assert output_files(one) == [one]
    new = output_files(tmp_path / "new")
    assert [file.name for file in new] == ["report.html", "report.md", "report.json"]
    dotted = tmp_path / "dotted.d"
    dotted.mkdir()
    assert output_files(dotted)[0] == dotted / "report.html"
    for file in [one, *new]:
        check(file)
        write(PAGE, file)
    assert one.read_text() == new[1].read_text() == markdown(PAGE)
    assert msgspec.json.decode(new[2].read_bytes()) == json.loads(json.dumps(tree(PAGE)))
    assert "<title>T</title>" in new[0].read_text()


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"--out .*page.pdf: a file of .html, .md, .json, or a fo"
    ):
        output_files(tmp_path / "page.pdf")
    (tmp_path / "plain").write_text("")
    with pytest.raises(
        ConfigError, match=r"--out .*plain: a file of .html, .md, .json, or a folder"
    ):
        output_files(tmp_path / "plain")
    (tmp_path / "report.md").mkdir()
    with pytest.raises(ConfigError, match=r"report.md: a folder; remove it, or name another --out"):
        check(tmp_path / "report.md")
