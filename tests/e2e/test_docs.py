"""What the documentation tells a reader to type works as it stands."""

import re
import shlex
import socket
import subprocess
import sys

import pytest

from tests.builders import ROOT, fastdlrm, guide_blocks, invoke, run_bash


def test_the_tutorial_runs(tmp_path):
    blocks = guide_blocks("docs/tutorial.md")
    assert len(blocks) == 8
    done = run_bash("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    auc = float(re.search(r"^auc +([0-9.]+)", done.stdout, re.MULTILINE)[1])
    assert auc > 0.65
    assert "score" in done.stdout


def test_the_guide_to_inspect_runs(tmp_path):
    blocks = guide_blocks("docs/guides/inspect.md")
    done = run_bash("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "shop: 64,000 rows" in done.stdout
    assert "<title>Dataset shop</title>" in (tmp_path / "shop.html").read_text()


def test_the_guide_to_large_data_runs(tmp_path):
    """It kills a prepare and starts it again."""
    (block,) = guide_blocks("docs/guides/large-data.md")
    done = run_bash(block, tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "log"]
    assert re.search(r"^train +[0-9,]+ rows", done.stdout, re.MULTILINE)


def test_the_guide_to_the_model_runs(tmp_path):
    done = run_bash("\n".join(guide_blocks("docs/guides/model.md")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "num_cross_layers" in (tmp_path / "MODEL" / "manifest.json").read_text()


def test_the_guide_to_other_programs_checkpoints_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = guide_blocks("docs/guides/import.md")
    for line in block.replace("\\\n", "").splitlines():
        said = invoke(*shlex.split(line)[1:])
    assert "dlrm-torchrec.pt" in said
    assert {"RUN", "dlrm.pt"} <= {path.name for path in tmp_path.iterdir()}


def test_the_guide_to_exporting_runs(tmp_path):
    done = run_bash("\n".join(guide_blocks("docs/guides/export.md")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tables int8, MLPs fp32: AUC" in done.stdout
    assert re.search(r"^deltas +[1-9]", done.stdout, re.MULTILINE)


def test_the_guide_to_serving_runs(tmp_path):
    script = "\n".join(guide_blocks("docs/guides/serving.md"))
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("", 0)) as grpc:
        ports = {"8000": http.getsockname()[1], "8001": grpc.getsockname()[1]}
    script = re.sub(r"\b(8000|8001)\b", lambda port: str(ports[port[0]]), script)
    done = run_bash(f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.search(r'"scores":\[([^]]*)\]', done.stdout)[1].split(",")) == 2
    ranked = [float(score) for score in re.findall(r'"index":\d+,"score":([0-9.e-]+)', done.stdout)]
    assert len(ranked) == 3
    assert ranked == sorted(ranked, reverse=True)
    assert '{"name":"ctr","version":"2","state":"READY","reason":""}' in done.stdout
    assert '"event":"stopped"' in done.stdout


def test_the_guide_to_bench_runs(tmp_path):
    script = "\n".join(guide_blocks("docs/guides/bench.md"))
    done = run_bash(script.replace("--quick", "--quick --seconds 0.05"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "embedding_bag %" in done.stdout
    assert "B/A" in done.stdout


def test_the_readme_names_what_exists():
    """The reference's first example crashes; here make's targets and the commands are there."""
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"\bmake (\w+)", text))
    assert {"demo", "test", "docs"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    commands = set(re.findall(r"`fastdlrm (\w+)`", text))
    assert {"generate", "prepare", "train", "eval", "predict"} <= commands
    for command in commands:
        fastdlrm(command, "--help")


@pytest.mark.slow
def test_the_demo_runs_to_its_verdict(tmp_path):
    """`make demo` on fewer rows, which teach less than it asks of 1,500,000."""
    done = run_bash(f"bash examples/demo.sh {tmp_path}/demo 20000", ROOT)
    verdict = re.search(r"^test AUC ([0-9.]+); the best any .* is ([0-9.]+):", done.stdout, re.M)
    assert verdict, done.stderr
    assert 0.6 < float(verdict[1]) < float(verdict[2])
    assert done.stderr.count("Traceback") == 0


def test_every_test_named_in_the_docs_exists():
    for page in ROOT.glob("docs/**/*.md"):
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
            assert f"def {name}(" in (ROOT / path).read_text(), f"{page.name}: {path}::{name}"


def test_every_link_in_the_docs_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
    for page in [*pages, *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_shows_the_committed_results():
    """Tables come from benchmarks/results; `make docs` renders them."""
    command = [sys.executable, "benchmarks/render_tables.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
