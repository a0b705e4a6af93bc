"""`fastdlrm bench colocate` as a user types it, on the smallest tables."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastdlrm.contracts.bench_result import read_result
from tests.builders import fastdlrm, invoke

TINY = ("--rows-scale", 0.001, "--quick", "--seconds", 0.1, "--device", "cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The file of a pair of models, and what the command printed."""
    out = tmp_path_factory.mktemp("colocate") / "c.json"
    command = ("bench", "colocate", "--model", "rmc1", "--with", "ncf", "--batch", 8, "--copies")
    return out, fastdlrm(*command, "2,1", *TINY, "--out", out)


def test_every_case_is_measured(measured):
    result = read_result(measured[0])
    found = [(m.key["tables"], m.key["copies"], m.key["model"], m.key["with"]) for m in
             result.measurements]  # fmt: skip
    assert found == [
        (tables, copies, model, partner)
        for tables in ("private", "shared")
        for copies, model, partner in (
            ("1", "rmc1", "rmc1"),
            ("2", "rmc1", "rmc1"),
            ("2", "ncf", "ncf"),
            ("2", "rmc1", "ncf"),
            ("2", "ncf", "rmc1"),
        )
    ]


def test_samples_are_kept_by_round_and_job(measured):
    result = read_result(measured[0])
    for found in result.measurements:
        is_pair = found.key["model"] != found.key["with"]
        jobs = 1 if is_pair else int(found.key["copies"])
        assert [len(counts) for counts in found.num_by_job] == [jobs] * 3
        for samples, counts in zip(found.rounds, found.num_by_job, strict=True):
            assert len(samples) == sum(counts)
        summary = found.summary
        assert summary.p5 <= summary.median
        assert min(map(min, filter(None, found.rounds))) <= summary.mean
        assert found.samples_per_s > 0
        assert found.stopped == "time"


def test_it_says_how_the_copies_ran(measured):
    settings = read_result(measured[0]).settings
    assert settings["load"] == "closed loop"
    assert settings["copies"] == [1, 2]
    assert settings["batch_size"] == 8
    assert settings["table_bytes"]["rmc1"] == 8 * 4000 * 32 * 4
    assert [job["model"] for job in settings["jobs"]] == ["rmc1", "rmc1", "ncf", "ncf"]
    allowed = os.sched_getaffinity(0)
    for job in settings["jobs"]:
        assert len(job["cores"]) == 1
        assert set(job["cores"]) <= allowed
        assert job["threads"] == 1
    taken = [job["cores"][0] for job in settings["jobs"]]
    assert taken[:2] == taken[2:]
    assert len(set(taken[:2])) == min(2, len(allowed))


def test_it_concludes(measured):
    out, text = measured
    found = read_result(out).colocation
    curves = {(curve.model, curve.tables): curve for curve in found.curves}
    assert set(curves) == {(m, t) for m in ("rmc1", "ncf") for t in ("private", "shared")}
    assert curves["rmc1", "private"].sla_ms == 100
    assert curves["ncf", "shared"].sla_ms == 5
    assert len(found.pairs) == 4
    for pair in found.pairs:
        assert pair.copies == 2
        assert pair.low <= pair.ratio <= pair.high
    assert "pair   ncf with rmc1, private tables, 2 copies: median" in text
    assert "copies of rmc1, shared tables: " in text
    assert "closed loop" in text
    assert "can hold that" in text  # tables of 4 MiB


def test_results_compare(measured):
    out, _ = measured
    found = json.loads(invoke("bench", "compare", out, out, "--json"))
    assert len(found["rows"]) == 10
    assert {row["ratios"][0]["verdict"] for row in found["rows"]} == {"no difference"}
    assert "batch_size" in invoke("bench", "compare", out, out)


def test_a_killed_copy_ends_all(tmp_path):
    out = tmp_path / "k.json"
    command = [sys.executable, "-m", "fastdlrm", "bench", "colocate", "--model", "rmc1"]
    command += ["--copies", "2", "--seconds", "300", "--rows-scale", "0.001", "--device", "cpu"]
    in_memory = set(Path("/dev/shm").iterdir())
    running = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    copies = _pinned_children(running, 2)
    os.kill(copies[1], signal.SIGKILL)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 1
    assert told.startswith("error: copy 1 of 2, of rmc1, on core ")
    assert "killed by signal 9: by hand, or for want of memory" in told
    assert told.count("\n") == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in copies)
    assert not out.exists()
    assert not [
        path for path in set(Path("/dev/shm").iterdir()) - in_memory if "tables" in path.name
    ]


def test_a_killed_command_leaves_no_copy(tmp_path):
    command = [sys.executable, "-m", "fastdlrm", "bench", "colocate", "--model", "rmc1"]
    command += ["--copies", "1", "--seconds", "1", "--rows-scale", "0.001", "--device", "cpu"]
    running = subprocess.Popen(
        [*command, "--tables", "private", "--out", str(tmp_path / "k.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    copies = _pinned_children(running, 1)
    running.kill()
    running.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in copies):
        time.sleep(0.05)


def test_mistakes_are_told_in_one_line(tmp_path):
    command = ("bench", "colocate", "--model", "rmc1", "--device", "cpu", "--out", tmp_path / "o")
    huge = ("--copies", 2, "--set", "data.sparse.0.max_rows=2000000000")  # 5.6 TiB
    told = fastdlrm(*command, *huge, code=2)
    assert told.startswith("error: tables of 2 copies and one shared set")
    assert "give --rows-scale " in told
    assert told.count("\n") == 1
    assert not (tmp_path / "o").exists()


def _pinned_children(running: subprocess.Popen, count: int) -> list[int]:
    """Process ids of copies, once all of them are on their cores."""
    allowed = os.sched_getaffinity(0)
    while True:
        assert running.poll() is None, running.communicate()
        text = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
        found = []
        for pid in map(int, text.split()):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"spawn_main" in command and len(os.sched_getaffinity(pid)) < max(2, len(allowed)):
                found.append(pid)
        if len(found) == count:
            return found
        time.sleep(0.05)
