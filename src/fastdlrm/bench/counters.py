"""Hardware counters of this process, by Linux' `perf`, or why there are none."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fastdlrm.contracts.host import Fact

EVENTS = ("instructions", "cycles", "cache-references", "cache-misses", "LLC-load-misses")
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
START_S = 0.3
"""That `perf` takes to attach."""
UNTRIED = "not counted"
"""What `perf` says of an event that had no time on a counter: not that there is none."""


def count(call: Callable[[int], object], calls: int) -> dict[str, Fact]:
    """Count events of all of this process' threads during some calls.

    Args:
        call: Takes k.
        calls: How many.

    Returns:
        Events a call by name, and where they are counted `ipc` (instructions a cycle) and
        `llc_mpki` (loads that miss the last cache, a thousand instructions).
    """
    perf = shutil.which("perf")
    if perf is None:
        return _none("perf is not installed; install linux-tools for this kernel")
    return _refused(perf) or _count(perf, call, calls)


@cache
def _refused(perf: str) -> dict[str, Fact]:
    """Why this machine counts nothing, looked at once; empty where it counts something."""
    found = _count(perf, lambda _: None, 1)
    facts = [found[name] for name in EVENTS if name in found]
    return {} if any(fact.value is not None or UNTRIED in fact.reason for fact in facts) else found


def _count(perf: str, call: Callable[[int], object], calls: int) -> dict[str, Fact]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "perf.csv"
        command = [perf, "stat", "-x", ",", "-o", str(out), "-e", ",".join(EVENTS)]
        running = subprocess.Popen(
            [*command, "-p", str(os.getpid())], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(START_S)
        for k in range(calls):
            call(k)
        running.send_signal(signal.SIGINT)
        said = running.communicate()[1].decode(errors="replace")
        text = out.read_text() if out.is_file() else ""
    if not text.strip():
        return _none(refusal(said))
    return parse(text, calls)


def parse(text: str, calls: int) -> dict[str, Fact]:
    """Events a call in what `perf stat -x ,` writes.

    Args:
        text: Lines of "count,unit,event,...".
        calls: That were counted.
    """
    found = {}
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) < 3 or line.startswith("#"):
            continue
        name = fields[2].partition(":")[0]
        if fields[0].isdecimal():
            found[name] = Fact(value=int(fields[0]) / calls)
        elif name in EVENTS:
            found[name] = Fact(reason=f"perf: {fields[0].strip('<>')} on this machine")
    found["ipc"] = _ratio(found, "instructions", "cycles", 1)
    found["llc_mpki"] = _ratio(found, "LLC-load-misses", "instructions", 1000)
    return found


def refusal(said: str, paranoid: Path = PARANOID) -> str:
    """Why perf counts nothing.

    Args:
        said: On its stderr.
        paranoid: The kernel's setting.
    """
    line = next((line.strip() for line in said.splitlines() if line.strip()), "no word")
    level = paranoid.read_text().strip() if paranoid.is_file() else "unknown"
    return f"perf counts nothing: {line}; kernel.perf_event_paranoid is {level}, 2 or less is asked"


def _ratio(found: dict[str, Fact], above: str, below: str, factor: float) -> Fact:
    missing = Fact(reason="not counted")
    upper, lower = found.get(above, missing), found.get(below, missing)
    for fact in (upper, lower):
        if fact.value is None:
            return Fact(reason=fact.reason)
    if not lower.value:
        return Fact(reason=f"{below} counts 0")
    return Fact(value=round(factor * float(upper.value or 0) / float(lower.value), 3))


def _none(reason: str) -> dict[str, Fact]:
    return {name: Fact(reason=reason) for name in (*EVENTS, "ipc", "llc_mpki")}
