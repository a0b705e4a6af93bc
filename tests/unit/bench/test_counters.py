"""Texts of `perf stat -x ,` of machines that have counters, and that have none."""

import pytest

from fastdlrm.bench.counters import EVENTS, count, parse, refusal

COUNTED = """\
# started on Wed Nov 25 10:00:00 2026

8000000,,instructions:u,1000000,100.00,2.00,insn per cycle
4000000,,cycles:u,1000000,100.00,,
90000,,cache-references:u,1000000,100.00,,
9000,,cache-misses:u,1000000,100.00,,
16000,,LLC-load-misses:u,1000000,100.00,,
"""
VIRTUAL = "<not supported>,,cycles,0,100.00,,\n<not counted>,,LLC-load-misses,0,100.00,,\n"


def test_events_a_call():
    values = {name: fact.value for name, fact in parse(COUNTED, calls=4).items()}
    assert values["instructions"] == 2_000_000
    assert values["ipc"] == 2  # 8,000,000 / 4,000,000
    assert values["llc_mpki"] == 2  # 16,000 misses in 8,000 thousand instructions
    assert set(values) == {*EVENTS, "ipc", "llc_mpki"}


def test_a_machine_without_counters_says_so():
    found = parse(VIRTUAL, calls=4)
    assert found["cycles"].value is None
    assert found["cycles"].reason == "perf: not supported on this machine"
    assert found["LLC-load-misses"].reason == "perf: not counted on this machine"
    assert found["ipc"].value is None
    assert found["ipc"].reason == "not counted"


def test_nothing_is_divided_by_none():
    text = "5,,instructions,1,100,,\n0,,cycles,1,100,,\n"
    assert parse(text, 1)["ipc"].reason == "cycles counts 0"


def test_a_refusal_names_the_kernels_setting(tmp_path):
    (tmp_path / "level").write_text("4\n")
    text = refusal("\nError:\nNo permission", tmp_path / "level")
    assert text == (
        "perf counts nothing: Error:; kernel.perf_event_paranoid is 4, 2 or less is asked"
    )
    assert "is unknown" in refusal("", tmp_path / "none")


def test_without_perf_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = count(lambda _: None, 1)
    assert set(found) == {*EVENTS, "ipc", "llc_mpki"}
    assert all("install linux-tools" in fact.reason for fact in found.values())


@pytest.mark.parametrize(
    ("lines", "num_made"),
    [("<not supported>,,cycles,0,0.00,,", 0), ("<not counted>,,cycles,0,0.00,,", 3)],
)
def test_what_a_machine_lacks_is_looked_for_once(tmp_path, monkeypatch, lines, num_made):
    """An event without a counter ends it; one that had no time on a counter may have it yet."""
    perf = tmp_path / "perf"
    perf.write_text(f"#!/bin/sh\necho '{lines}' > \"$5\"\n")  # perf stat -x , -o FILE
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    made = []
    assert count(made.append, 3)["cycles"].value is None
    assert len(made) == num_made


@pytest.mark.parametrize("calls", [3])
def test_every_call_is_made_and_every_event_answered(calls):
    made = []
    found = count(made.append, calls)
    assert made in ([0, 1, 2], [])  # none where perf is not installed
    assert all(fact.value is not None or fact.reason for fact in found.values())
