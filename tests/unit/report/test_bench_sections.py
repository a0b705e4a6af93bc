"""What stands in a benchmark's charts and tables is what was measured."""

import pytest

from fastdlrm.contracts.host import Fact
from fastdlrm.report.bench_batch import batch_section
from fastdlrm.report.bench_general import general_section
from fastdlrm.report.bench_operators import operator_section, shares
from fastdlrm.report.page import Grid, Notes, Number, Share, Table
from fastdlrm.report.provenance import groups
from fastdlrm.report.published import READ_OFF
from tests.unit.report.planted import host, measured, result, sources

CPU = result(
    [
        measured({"batch_size": "1"}, 2.0, samples_per_s=500.0),
        measured({"batch_size": "64"}, 16.0, p95=18.0, p99=20.0, samples_per_s=4000.0),
    ]
)
GPU = result(
    [measured({"batch_size": "64"}, 4.0, samples_per_s=16000.0)],
    device="cuda",
    host=host(gpu="Planted GPU"),
)


def blocks(section, kind):
    """Blocks of a kind, those in grids too."""
    inner = [b for block in section.blocks for b in getattr(block, "blocks", [block])]
    return [block for block in inner if isinstance(block, kind)]


def charts(section):
    grids = [block for block in section.blocks if isinstance(block, Grid)]
    return [chart for grid in grids for chart in grid.blocks]


def test_batch_curves():
    latency, throughput = charts(batch_section(groups(sources(CPU))))
    median, p99 = latency.series
    assert (median.name, list(median.places), list(median.values)) == ("median", [1, 64], [2, 16])
    assert [*median.low, *median.high] == pytest.approx([1.8, 14.4, 2.2, 17.6])
    assert (p99.name, list(p99.values)) == ("p99", [None, 20.0])
    assert [list(one.values) for one in throughput.series] == [[500.0, 4000.0]]
    assert latency.title == "Latency, rmc1, rows_scale 0.5"
    assert "Planted CPU, 8 cores, cpu, 4 threads, commit 0123456789ab" in latency.note
    layout = latency.figure["layout"]
    assert (layout["xaxis"]["type"], layout["yaxis"]["type"]) == ("log", "log")
    assert layout["xaxis"]["tickvals"] == [1, 64]


def test_machines_are_drawn_together_and_a_gpu_over_the_cpu():
    section = batch_section(groups(sources(CPU, GPU)))
    latency, _, speed_up = charts(section)
    assert [one.name for one in latency.series] == [
        "Planted CPU, 8 cores, median",
        "Planted CPU, 8 cores, p99",
        "Planted GPU, median",
    ]
    ours, published = speed_up.series
    assert (list(ours.places), list(ours.values)) == ([64], [4.0])
    assert READ_OFF in published.name
    assert published.is_dashed
    (table,) = blocks(section, Table)
    assert len(table.rows) == 3
    assert table.columns[:2] == ["result", "batch_size"]


def test_a_model_without_published_numbers_has_none_beside_it():
    pair = [result(r.measurements, device=r.device, host=r.host, model="other") for r in (CPU, GPU)]
    *_, speed_up = charts(batch_section(groups(sources(*pair))))
    assert len(speed_up.series) == 1


def operators(times, **changes):
    """Steps of inference: milliseconds by operator, by batch size."""
    found = []
    for size, step in times.items():
        facts = {"instructions": Fact(reason="no perf here")}
        key = {"pass": "inference", "batch_size": size}
        found.append(
            measured({**key, "operator": "step"}, 2.0, flop=4e6, num_bytes=2e6, counters=facts)
        )
        found += [
            measured(
                {**key, "operator": name}, ms, flop=3e6, num_bytes=1e6 if name == "fc" else None
            )
            for name, ms in step.items()
        ]
    return result(found, "operators", **changes)


STEPS = {"1": {"embedding_bag": 3.0, "fc": 1.0}, "64": {"embedding_bag": 1.0, "fc": 1.0}}


def test_operator_shares():
    section = operator_section(groups(sources(operators(STEPS))))
    (chart,) = charts(section)
    assert [(one.name, list(one.values)) for one in chart.series] == [
        ("fc", [0.25, 0.5]),
        ("embedding_bag", [0.75, 0.5]),
    ]
    assert chart.figure["layout"]["barmode"] == "stack"
    assert chart.figure["data"][0]["x"] == ["1", "64"]
    (table,) = blocks(section, Table)
    assert table.columns == [
        *("pass", "batch size", "step, ms", "fc", "embedding_bag"),
        *("fc, FLOP/byte", "GFLOP/s", "GB/s"),
    ]
    # 4e6 FLOPs and 2e6 bytes in 2 ms: 2 GFLOP/s and 1 GB/s; fc: 3e6 FLOPs over 1e6 bytes.
    assert table.rows[0][2:] == [
        *(Number(2.0), Share(0.25), Share(0.75)),
        *(Number(3.0, ".3g"), Number(2.0), Number(1.0)),
    ]
    (notes,) = blocks(section, Notes)
    assert notes.texts == ["a note of the result", "no hardware counters: no perf here"]


def test_machines_stand_side_by_side_in_each_batch_size():
    both = operators(STEPS), operators({"1": STEPS["64"]}, host=host("Other CPU"))
    (chart,) = charts(operator_section(groups(sources(*both))))
    sizes, machines = chart.figure["data"][0]["x"]
    assert sizes == ["1", "1", "64"]
    assert machines == ["A", "B", "A"]
    assert chart.note.endswith("A: Planted CPU, 8 cores; B: Other CPU, 8 cores.")
    assert list(chart.series[0].values) == [0.25, 0.5, 0.5]


def test_shares_of_nothing_are_zero():
    step = {"fc": measured({}, 0.0)}
    assert shares(step, ["fc", "embedding_bag"]) == [0.0, 0.0]


def test_a_benchmark_of_another_name_has_its_measurements():
    found = [measured({"kind": "a", "size": "1"}, 2.0), measured({"size": "2", "extra": "x"}, 3.0)]
    section = general_section("Benchmark other", groups(sources(result(found, "other"))))
    (table,) = blocks(section, Table)
    assert table.columns[:4] == ["kind", "size", "extra", "median ms"]
    assert [row[:4] for row in table.rows] == [
        ["a", "1", "", Number(2.0)],
        ["", "2", "x", Number(3.0)],
    ]
