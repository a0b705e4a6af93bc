"""Shapes that arXiv:1906.03109 and arXiv:2001.02772 publish, in the committed results.

Bounds are wide: the papers measured other machines, and ours were measured in a quarter of an hour.
What must hold is which is larger, not by how much.
"""

from pathlib import Path
from statistics import geometric_mean, median

import pytest

from fastdlrm.contracts.bench_result import BenchResult, read_result

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
RMC = ("rmc1", "rmc2", "rmc3")
BATCHES = {"h100": ("16", "64"), "cpu": ("16", "256")}
"""Small and medium ones that were measured."""
STRICT = ("rmc1-latency-bounded-strict", "rmc3-latency-bounded-strict")

is_studied = pytest.mark.skipif(
    not any(RESULTS.glob("bench-cpu-*.json")),
    reason="no CPU results yet: python benchmarks/run_study.py makes them",
)
MACHINES = ("h100", pytest.param("cpu", marks=is_studied))


def committed(machine: str, name: str) -> BenchResult:
    path = RESULTS / f"bench-{machine}-{name}.json"
    preset, _, subcommand = name.partition("-")
    command = f"python benchmarks/run_study.py --only {name}"
    if machine != "cpu":
        command = f"fastdlrm bench {subcommand} --model {preset} --device cuda --out {path}"
    assert path.is_file(), f"{path}: missing; {command} makes it"
    return read_result(path)


def shares(result: BenchResult, batch_size: str, kind: str = "inference") -> dict[str, float]:
    """Of the profiled time of a step, by operator class."""
    found = {
        one.key["operator"]: one.summary.median
        for one in result.measurements
        if one.key["pass"] == kind and one.key["batch_size"] == batch_size
    }
    del found["step"]
    return {name: ms / sum(found.values()) for name, ms in found.items()}


def slow_down(preset: str) -> float:
    """Of a copy that has another one beside it, each on its own core, to itself alone."""
    result = committed("cpu", f"{preset}-colocate")
    means = {
        one.key["copies"]: one.summary.mean
        for one in result.measurements
        if one.key["tables"] == "private"
    }
    return means["2"] / means["1"]


def rates(name: str) -> dict[int, float]:
    """Queries a second within the SLA, by B."""
    found = committed("cpu", name).latency_bounded
    return {rung.rows: median(rung.rates) for rung in found.rungs}


@pytest.mark.parametrize("machine", MACHINES)
def test_embedding_bags_take_most_of_rmc2_and_linear_layers_of_rmc3(machine):
    """arXiv:1906.03109, figure 7: RMC1 lies between."""
    by_model = {name: committed(machine, f"{name}-operators") for name in RMC}
    for size in BATCHES[machine]:
        found = {name: shares(result, size) for name, result in by_model.items()}
        assert found["rmc2"]["embedding_bag"] > 0.5
        assert found["rmc3"]["fc"] > 0.5
        assert found["rmc2"]["embedding_bag"] > found["rmc1"]["embedding_bag"] - 0.05
        assert found["rmc1"]["embedding_bag"] > found["rmc3"]["embedding_bag"]


@is_studied
def test_wider_layers_leave_embedding_bags_a_smaller_share():
    for size in BATCHES["cpu"]:
        names = ("rmc1-operators", "rmc1-operators-wide", "rmc1-operators-wider")
        narrow, wide, wider = (
            shares(committed("cpu", name), size)["embedding_bag"] for name in names
        )
        assert narrow > wide > wider
        assert wider < narrow / 2


@is_studied
def test_two_copies_hurt_rmc2_no_less_than_the_others_but_for_noise():
    """arXiv:1906.03109, section VI: 8 copies make RMC1, 2, 3 1.3, 2.6, 1.6 times as slow. Two on
    two cores do not differ by more than a tenth: the paper's order needs more of both."""
    found = {name: slow_down(name) for name in RMC}
    assert found["rmc2"] > max(found["rmc1"], found["rmc3"]) - 0.1, found
    assert all(0.8 < ratio < 4 for ratio in found.values()), found


@is_studied
@pytest.mark.parametrize("preset", ["rmc1", "rmc3"])
def test_a_looser_sla_tolerates_larger_parts(preset):
    """arXiv:2001.02772, figure 11: where there is time, B = 1024 reaches more of the best rate."""
    loose = rates(f"{preset}-latency-bounded")
    strict = rates(f"{preset}-latency-bounded-strict")
    of_best = [found[1024] / max(found.values()) for found in (strict, loose)]
    assert of_best[0] < of_best[1] + 0.1
    assert 0 < max(strict.values()) < 1.15 * max(loose.values())


@is_studied
def test_a_tuned_b_beats_the_static_one():
    """arXiv:2001.02772: by 1.7 to 2.7 with 40 workers; two leave less to gain."""
    names = [*(f"{name}-latency-bounded" for name in RMC), *STRICT]
    gains = [committed("cpu", name).latency_bounded.tuned_to_static for name in names]
    assert min(gains) >= 1.0
    assert geometric_mean(gains) > 1.0, gains
