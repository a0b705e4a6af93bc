"""What the documentation tells a reader to type works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.builders import ROOT


def _blocks(path: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_tutorial_runs(tmp_path):
    blocks = _blocks(ROOT / "docs" / "tutorial.md")
    assert len(blocks) == 8
    script = "set -euo pipefail\n" + "\n".join(blocks)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    auc = float(re.search(r"^auc +([0-9.]+)", done.stdout, re.MULTILINE)[1])
    assert auc > 0.65
    assert "score" in done.stdout


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
