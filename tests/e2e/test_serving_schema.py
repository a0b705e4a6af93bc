"""Schemathesis reads the server's own /openapi.json and holds the server to it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.serving import rows_of, served

pytestmark = [pytest.mark.xdist_group("serving"), pytest.mark.slow]
MAX_EXAMPLES = 15
"""Of an operation in each phase."""
EXCLUDED = (
    "not_a_server_error",  # 503 and 504 are right answers; what is undocumented is found below
    "positive_data_acceptance",  # columns that must agree with each other are beyond JSON Schema
)


def test_the_server_does_what_its_document_says(exported, tmp_path):
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed beside this interpreter")
    shutil.copytree(exported.models, tmp_path / "models")
    columns, scores = exported.golden()
    log = tmp_path / "log.jsonl"
    with served(tmp_path / "models", log, "--workers", 1) as server:
        command = [
            *(program, "run", f"{server.url}/openapi.json"),
            *("--max-examples", MAX_EXAMPLES, "--seed", 1, "--generation-database", "none"),
            *("--checks", "all", "--exclude-checks", ",".join(EXCLUDED)),
            *("--exclude-path-regex", "/unload$", "--continue-on-failure", "--no-color"),
        ]
        done = subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        for code in ("500", "501", "502"):
            assert server.metric("fastdlrm_requests_total", code=code) == 0, code
        assert server.metric("fastdlrm_requests_total", code="200") > 50
        assert server.metric("fastdlrm_requests_total", code="400") > 50
        assert server.is_well(rows_of(columns, 0, 20), scores[:20])
    unforeseen = [event for event in server.events() if event["event"] == "unforeseen_error"]
    assert unforeseen == []
