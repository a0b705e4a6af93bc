"""The guide to reports, and its page in a browser: every chart drawn, no network asked.

FASTDLRM_SCREENSHOTS names a folder to keep pictures in.
"""

import contextlib
import json
import os
import shlex
from pathlib import Path

import pytest
import torch

from fastdlrm.contracts.bench_result import write_result
from tests.builders import fastdlrm, guide_blocks, invoke
from tests.e2e.browser import browsing
from tests.unit.report.planted_conclusions import RATES, bounded, colocated, roofed

pytestmark = pytest.mark.xdist_group("report")  # the results are made once

DRAWN = "[...document.querySelectorAll('.chart')].filter(c => c.querySelector('{layer} path'))"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the guide was followed, in this process, and its report."""
    folder = tmp_path_factory.mktemp("report")
    (script,) = guide_blocks("docs/guides/report.md")
    threads = torch.get_num_threads()
    try:
        with contextlib.chdir(folder):
            for line in script.splitlines():
                command, *arguments = shlex.split(line)
                assert command == "fastdlrm"
                told = invoke(*arguments)
    finally:
        torch.set_num_threads(threads)
    assert told == "written to report/report.html, report/report.md, report/report.json\n"
    return folder, json.loads((folder / "report" / "report.json").read_text())


def blocks(tree, kind):
    """Blocks of a kind in the report's JSON."""
    found = [block for section in tree["sections"] for block in section["blocks"]]
    found += [inner for block in found for inner in block.get("blocks", ())]
    return [block for block in found if block["kind"] == kind]


def test_the_report_says_what_its_sources_say(made):
    folder, tree = made
    out = folder / "one.json"
    assert invoke("report", folder / "batch.json", "--out", out, "--json") == out.read_text()
    text = (folder / "report" / "report.md").read_text()
    for section in tree["sections"]:
        assert f"\n## {section['title']}\n" in text
    batch = json.loads((folder / "batch.json").read_text())
    speed = batch["measurements"][0]["samples_per_s"]
    assert f"{speed:,.0f}" in text
    assert any(speed in row for table in blocks(tree, "table") for row in table["rows"])
    record = json.loads((folder / "run" / "records.jsonl").read_text().splitlines()[-1])
    (auc,) = [chart for chart in blocks(tree, "chart") if chart["title"].startswith("AUC")]
    assert auc["series"][0]["y"][-1] == record["values"]["auc"]


def test_every_chart_says_what_it_is_of(made):
    _, tree = made
    charts = blocks(tree, "chart")
    assert len(charts) == 8  # two of batches, two of operators, two of training, calibration, ROC
    for chart in charts:
        assert "commit " in chart["note"], chart["title"]
        assert chart["x"], chart["title"]
        assert chart["y"], chart["title"]
        assert chart["series"], chart["title"]


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    folder, _ = made
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        opened.look()
        opened.open((folder / "report" / "report.html").as_uri())
        opened.wait("document.documentElement.dataset.drawn")
        yield opened


def test_every_chart_is_drawn_and_nothing_is_loaded(made, page):
    _, tree = made
    charts = blocks(tree, "chart")
    assert page.value("document.querySelectorAll('.chart').length") == len(charts)
    assert page.value("document.documentElement.dataset.drawn") == str(len(charts))
    lines, bars = DRAWN.format(layer=".scatterlayer .trace"), DRAWN.format(layer=".barlayer .point")
    assert page.value(f"{lines}.length + {bars}.length") == len(charts)
    assert page.value("performance.getEntriesByType('resource').length") == 0
    assert page.complaints == []


def test_light_dark_narrow_and_printed(page, tmp_path):
    folder = Path(os.environ.get("FASTDLRM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    ink = "getComputedStyle(document.querySelector('.chart text')).fill"
    seen = []
    for dark in (False, True):
        page.look(dark=dark)
        page.wait(f"{ink} !== {json.dumps(seen[-1] if seen else '')}")
        seen.append(page.value(ink))
        page.screenshot(folder / f"report-{'dark' if dark else 'light'}.png", height=2260)
    page.value("dispatchEvent(new Event('beforeprint'))")  # on white paper whatever the window is
    assert page.wait(f"{ink} === {json.dumps(seen[0])}")
    assert page.value("document.querySelector('.main-svg').getBoundingClientRect().width") == 660
    page.value("dispatchEvent(new Event('afterprint'))")
    page.look(390, 800)
    page.wait("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []


def test_conclusions_are_drawn(page, tmp_path):
    """Rooflines, copies and rates, planted: to measure them takes minutes."""
    results = roofed(), colocated(), bounded(10.0, RATES), bounded(20.0, RATES)
    for number, one in enumerate(results):
        write_result(tmp_path / f"{number}.json", one)
    out = tmp_path / "report.html"
    tree = json.loads(invoke("report", *sorted(tmp_path.glob("*.json")), "--out", out, "--json"))
    page.look()
    page.open(out.as_uri())
    page.wait("document.documentElement.dataset.drawn")
    lines = DRAWN.format(layer=".scatterlayer .trace")
    assert page.value(f"{lines}.length") == len(blocks(tree, "chart")) == 7
    assert page.complaints == []


def test_what_cannot_be_read_is_named(made):
    folder, _ = made
    (folder / "bad.json").write_text('{"kind": "other"}')
    out = ("--out", folder / "none.html")
    told = fastdlrm("report", folder / "batch.json", folder / "bad.json", *out, code=1)
    assert told.startswith(f"error: {folder / 'bad.json'}: kind and version are ('other', None)")
    assert not (folder / "none.html").exists()
