"""The server's pages in a browser: no error, the form scores, the figures move under load.

FASTDLRM_SCREENSHOTS names a folder to keep pictures in: docs/images shows the page with them.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.e2e.browser import browsing
from tests.e2e.serving import MODEL, Traffic, rows_of, served

pytestmark = pytest.mark.xdist_group("serving")
QPS = """(() => { for (const tile of document.querySelectorAll('#tiles > div'))
  if (tile.querySelector('dt')?.innerText === 'Queries')
    return parseFloat(tile.querySelector('dd')?.innerText.replace(',', '')) || 0; })()"""
DRAWN = "[...document.querySelectorAll('#charts path.line')].filter(p => p.getAttribute('d'))"
TOKEN = "secret-of-the-page"


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        opened.look()
        opened.open(server.url + "/")
        opened.wait("document.querySelector('#state')?.innerText === 'ready'")
        opened.wait("document.querySelectorAll('#fields input').length > 0")
        yield opened


@pytest.fixture
def pictures(tmp_path):
    """Where pictures go."""
    folder = Path(os.environ.get("FASTDLRM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown_percent(text: str) -> float:
    """The first percentage in a text, as a share."""
    return float(re.search(r"([\d.]+)\s*%", text)[1]) / 100


def send(page, answer: str) -> None:
    """Send the form and wait for an element of its answer."""
    page.value("document.querySelector('#answer').replaceChildren()")
    page.click("#send")
    page.wait(f"document.querySelector('#answer {answer}') !== null")


def test_the_form_scores_an_example(page, server):
    fields = "Object.fromEntries([...document.querySelectorAll('#fields input')]"
    row = page.value(f"{fields}.map(i => [i.name, i.value]))")
    assert set(row) == {*("I1", "I2", "I3", "I4"), *("C1", "C2", "C5", "C6", "C8", "C9")}
    send(page, ".big")
    answer = server.ask("POST", f"/v1/models/{MODEL}:score", {"rows": [row]})
    assert answer.status == 200
    (score,) = answer.json()["scores"]
    assert shown_percent(page.text("#answer .big")) == pytest.approx(score, rel=1e-3)
    assert f"{MODEL} version 1" in page.text("#answer")
    assert "curl " in page.value("document.querySelector('#answer pre').textContent")
    assert page.complaints == []


def test_another_example_and_a_missing_value_score_too(page):
    send(page, ".big")
    page.click("#another")
    page.value("document.querySelector('#fields input[name=I1]').value = ''")
    before = page.text("#answer .big")
    send(page, ".big")
    assert page.text("#answer .big") != before


def test_the_form_ranks_candidates_best_first(page):
    page.click("#mode-rank")
    send(page, ".ranked li")
    shares = page.value(
        "[...document.querySelectorAll('#answer .ranked li')].map(e => e.innerText)"
    )
    scores = [shown_percent(text) for text in shares]
    assert len(scores) == len(page.value("document.querySelector('#candidates').value").split("\n"))
    assert scores == sorted(scores, reverse=True)
    page.value("document.querySelector('#candidates').value = '{'")
    send(page, ".problem")
    assert "candidate 0" in page.text("#answer .problem")
    page.click("#mode-score")


def test_a_wrong_value_is_told(page):
    page.value("document.querySelector('#fields input[name=I1]').value = 'many'")
    send(page, ".problem")
    assert "I1" in page.text("#answer .problem")
    assert "many" in page.text("#answer .problem")
    # the browser itself notes the status 400 of that request
    assert all("400" in complaint for complaint in page.complaints), page.complaints
    page.complaints.clear()
    page.click("#another")


def test_figures_move_under_load(page, server, exported, pictures):
    columns, _ = exported.golden()
    busy_s = 75 if os.environ.get("FASTDLRM_SCREENSHOTS") else 0
    with Traffic(server, rows_of(columns, 0, 20), num_threads=2):
        assert page.wait(f"{QPS} > 1 && {QPS}") > 1
        page.wait(f"{DRAWN}.length >= 4")
        page.wait("!document.querySelector('#stages').hidden")
        stages = "[...document.querySelectorAll('#stage-keys .key')].map(e => e.innerText)"
        shown = [text.split()[0] for text in page.value(stages)]
        assert shown == ["parse", "queue", "hand-over", "encode", "compute", "respond"]
        rest = page.value("document.querySelectorAll('#stack span')[2].style.width")
        assert float(rest.removesuffix("%")) > 0
        time.sleep(busy_s)
        send(page, ".big")
        for dark in (False, True):
            page.look(dark=dark)
            page.wait("document.querySelectorAll('#charts svg text').length > 8")
            time.sleep(1.1)  # the next figures draw the charts in these colours
            file = pictures / f"serving-page-{'dark' if dark else 'light'}.png"
            page.screenshot(file)
            assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert page.text("#models").count("ready") == 1
    assert page.complaints == []
    page.look()


@pytest.mark.parametrize("verb", ["v1/models/{model}:rank", "v1/models/{model}:score", "infer"])
def test_the_documents_send_their_examples(page, server, verb):
    page.complaints.clear()
    page.open(server.url + "/docs")
    path = f"/v2/models/{{model}}/{verb}" if verb == "infer" else f"/{verb}"
    route = f"[...document.querySelectorAll('details.route.post, details.route')].find(d => \
      d.querySelector('code')?.innerText === {json.dumps(path)})"
    page.wait(f"!!({route})")
    page.value(f"({route}).open = true")
    page.wait(f"!!({route}).querySelector('button')")
    page.value(f"({route}).querySelector('button').click()")
    page.wait(f"({route}).innerText.includes('200 OK')")
    assert "score" in page.value(f"({route}).innerText")
    assert page.complaints == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_narrow_screen_needs_no_sideways_scrolling(page, server, path, pictures):
    page.open(server.url + path)
    page.look(390, 800)
    time.sleep(0.3)
    widths = page.value("[document.documentElement.scrollWidth, innerWidth]")
    page.screenshot(pictures / f"serving-{'docs' if path == '/docs' else 'page'}-narrow.png")
    assert widths[0] <= widths[1]
    page.look()


def test_the_documents_show_every_path(page, server, pictures):
    page.complaints.clear()
    page.open(server.url + "/docs")
    paths = list(server.ask("GET", "/openapi.json").json()["paths"])
    assert len(paths) > 20
    page.wait(f"document.body.innerText.includes({json.dumps(paths[0])})")
    body = page.value("document.body.textContent")
    assert [path for path in paths if path not in body] == []
    rank = "[...document.querySelectorAll('details.route')].find(d => d.id.endsWith('model-rank'))"
    page.value(f"({rank}).open = true")
    page.wait(f"!!({rank}).querySelector('button')")
    for dark in (False, True):
        page.look(dark=dark)
        page.screenshot(pictures / f"serving-docs-{'dark' if dark else 'light'}.png", height=1200)
    assert page.complaints == []


def test_a_page_that_needs_a_token_asks_for_it(page, exported, tmp_path):
    flags = ("--set", "security.token_env=FASTDLRM_TEST_TOKEN", "--workers", 1)
    env = {"FASTDLRM_TEST_TOKEN": TOKEN}
    with served(exported.models, tmp_path / "log.jsonl", *flags, env=env) as guarded:
        page.open(guarded.url + "/")
        page.wait("!document.querySelector('#login').hidden")
        assert page.text("#state") == "locked"
        page.value(f"document.querySelector('#token').value = {json.dumps(TOKEN)}")
        page.click("#login button")
        page.wait("document.querySelector('#state')?.innerText === 'ready'")
        page.wait("document.querySelector('#login').hidden")
        page.wait("document.querySelectorAll('#fields input').length > 0")
        send(page, ".big")
        assert TOKEN not in page.value("document.querySelector('#answer').textContent")
        assert all("401" in complaint for complaint in page.complaints), page.complaints
        page.open("about:blank?")
