"""`fastdlrm report` of real results, in a browser: every chart drawn, nothing asked of a network.

FASTDLRM_SCREENSHOTS names a folder to keep pictures in.
"""

import json
import os
from pathlib import Path

import pytest

from tests.builders import fastdlrm, invoke, tiny_dataset
from tests.e2e.browser import browsing

pytestmark = pytest.mark.xdist_group("report")  # the results are made once

TINY = ("--rows-scale", 0.001, "--quick", "--seconds", 0.02, "--device", "cpu")
DRAWN = "[...document.querySelectorAll('.chart')].filter(c => c.querySelector('{layer} path'))"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of two settings, a run and its evaluation, and the report of them."""
    folder = tmp_path_factory.mktemp("report")
    batch = ("bench", "batch", "--model", "rmc1", "--batches", "1,8", *TINY)
    invoke(*batch, "--out", folder / "batch.json")
    fastdlrm(*batch, "--threads", 1, "--out", folder / "batch-1.json")
    operators = ("bench", "operators", "--model", "rmc1", "--batches", "1,8", *TINY)
    invoke(*operators, "--out", folder / "operators.json")
    tiny_dataset(folder)
    run = ("--data", folder / "data", "--set", "train.log_every_steps=1")
    invoke("train", "--config", "tiny", *run, "--out", folder / "run")
    evaluate = ("eval", "--run", folder / "run", "--data", folder / "data")
    invoke(*evaluate, "--out", folder / "eval.json")
    sources = [f"{name}.json" for name in ("batch", "batch-1", "operators", "eval")]
    paths = [*(folder / name for name in sources), folder / "run"]
    return folder, json.loads(invoke("report", *paths, "--out", folder / "report", "--json"))


def blocks(tree, kind):
    """Blocks of a kind in the report's JSON."""
    found = [block for section in tree["sections"] for block in section["blocks"]]
    found += [inner for block in found for inner in block.get("blocks", ())]
    return [block for block in found if block["kind"] == kind]


def test_the_report_says_the_same_in_three_formats(made):
    folder, tree = made
    assert json.loads((folder / "report" / "report.json").read_text()) == tree
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
        page.screenshot(folder / f"report-{'dark' if dark else 'light'}.png")
    page.value("dispatchEvent(new Event('beforeprint'))")  # on white paper whatever the window is
    assert page.wait(f"{ink} === {json.dumps(seen[0])}")
    assert page.value("document.querySelector('.main-svg').getBoundingClientRect().width") == 660
    page.value("dispatchEvent(new Event('afterprint'))")
    page.look(390, 800)
    page.wait("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []


def test_what_cannot_be_read_is_named(made):
    folder, _ = made
    (folder / "bad.json").write_text('{"kind": "other"}')
    out = ("--out", folder / "none.html")
    told = fastdlrm("report", folder / "batch.json", folder / "bad.json", *out, code=1)
    assert told.startswith(f"error: {folder / 'bad.json'}: kind and version are ('other', None)")
    assert not (folder / "none.html").exists()
