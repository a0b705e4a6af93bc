"""The page of a dataset in a browser: every chart is drawn, nothing is complained about."""

import re
import shutil
import subprocess

import pytest

from tests.builders import fastdlrm
from tests.every_kind import HOSTILE, every_kind

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    return found


def test_every_chart_is_drawn_without_an_error(tmp_path):
    browser = _browser()
    every_kind(tmp_path / "log", rows_a_file=1500)
    page = tmp_path / "page.html"
    fastdlrm("inspect", tmp_path / "log" / "data", "--html", page)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=10000",
        "--enable-logging=stderr",
        "--window-size=1200,900",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert complaints == []
    charts = re.findall(r'<div class="chart[^>]*>', done.stdout)
    assert len(charts) == page.read_text().count('<div class="chart"') > 8
    assert all('data-drawn="yes"' in chart for chart in charts)
    assert f'data-drawn="{len(charts)}"' in done.stdout
    # A chart's first layer, and within each at least one line or dot.
    assert done.stdout.count('<svg class="main-svg"') >= len(charts)
    assert len(re.findall(r'class="trace scatter', done.stdout)) > len(charts)
    assert HOSTILE not in done.stdout
    assert "<img" not in done.stdout
