"""Co-location, rooflines and throughput within an SLA: what was concluded is what is drawn."""

import pytest

from fastdlrm.contracts.bench_result import write_result
from fastdlrm.contracts.colocation import Pair
from fastdlrm.errors import DataError
from fastdlrm.report.bench_colocation import colocation_section
from fastdlrm.report.bench_latency_bounded import latency_bounded_section
from fastdlrm.report.bench_roofline import roofline_section
from fastdlrm.report.page import Grid, Notes, Table
from fastdlrm.report.provenance import groups
from fastdlrm.report.published import READ_OFF
from fastdlrm.report.sources import read_sources
from tests.unit.report.planted import host, measured, result, sources
from tests.unit.report.planted_conclusions import RATES, bounded, colocated, roofed


def charts(section):
    grids = [block for block in section.blocks if isinstance(block, Grid)]
    return {chart.title.partition(",")[0]: chart for grid in grids for chart in grid.blocks}


def tables(section):
    """Rows of plain values."""
    found = [block for block in section.blocks if isinstance(block, Table)]
    return [[[getattr(c, "value", c) for c in row] for row in table.rows] for table in found]


def test_copies():
    section = colocation_section(groups(sources(colocated())))
    found = charts(section)
    p5, p50, p99, sla = found["Latency of copies"].series
    assert [list(one.values) for one in (p5, p50, p99)] == [[1.0, 1.5], [2.0, 3.0], [4.0, None]]
    assert list(p50.places) == [1, 2]
    assert sla.name == "SLA of p99, 5 ms"
    (frontier,) = found["Throughput against latency"].series
    assert (frontier.places, frontier.values, frontier.labels) == ([4.0], [100.0], ["1"])
    ours, *published = found["Latency over that of one copy"].series
    assert list(ours.values) == [1.0, 1.5]
    assert all(READ_OFF in one.name and one.is_dashed for one in published)
    assert list(published[0].places) == [1, 10]  # no further than is of use beside two copies
    measurements, curves = tables(section)
    assert len(measurements) == 3
    assert curves == [["rmc1", "private", 2, "it bends", 5.0, 1]]
    assert "Latency among copies of another model" not in found


def test_a_far_sla_is_in_the_table_alone():
    section = colocation_section(groups(sources(colocated(sla_ms=100.0))))
    assert len(charts(section)["Latency of copies"].series) == 3
    assert tables(section)[1][0][4] == 100.0


def test_pairs_and_machines():
    pair = Pair(
        model="rmc1", partner="rmc3", tables="private", copies=2, ratio=1.5, low=1.2, high=1.8
    )
    both = colocated(pairs=[pair]), colocated(host=host("Other CPU"))
    found = charts(colocation_section(groups(sources(*both))))
    chart = found["Latency among copies of another model"]
    assert chart.rows == ["Planted CPU, 8 cores: rmc1 with rmc3, private, 2"]
    assert (chart.series[0].values, chart.series[0].low) == ([1.5], [1.2])
    assert [one.name for one in found["Throughput against latency"].series] == [
        "Planted CPU, 8 cores, private tables",
        "Other CPU, 8 cores, private tables",
    ]


def test_rates_against_b():
    section = latency_bounded_section(groups(sources(bounded(10.0, RATES))))
    found = charts(section)
    rates, ceiling = found["Rate within the SLA against B"].series
    assert (rates.places, rates.values) == ([16, 64], [20.0, 50.0])
    assert (rates.low, rates.high) == ([18.0, 40.0], [25.0, 60.0])
    assert rates.labels == ["static", "tuned"]
    assert list(ceiling.values) == [100.0, 100.0]
    assert "Rate against the SLA" not in found
    gain = found["What tuning B brings"]
    assert gain.rows[:2] == ["p95 within 10 ms", "low SLA of the paper"]
    assert gain.series[0].values == [2.5, None, None, None]
    assert gain.series[1].values[0] is None
    assert READ_OFF in gain.series[1].name
    (rows,) = tables(section)
    assert rows[1] == ["p95 within 10 ms", 64, 50.0, 40.0, 60.0, 1.0, 0.5, "tuned"]


def test_rates_against_the_sla():
    """Given in any order; the other machine has one SLA, of which no line can be drawn."""
    some = [
        bounded(20.0, {16: (30.0,), 64: (90.0,)}),
        bounded(10.0, RATES),
        bounded(10.0, RATES, host=host("Other CPU")),
    ]
    chart = charts(latency_bounded_section(groups(sources(*some))))["Rate against the SLA"]
    tuned, static = chart.series
    assert (tuned.places, tuned.values) == ([10.0, 20.0], [50.0, 90.0])
    assert static.values == [20.0, 30.0]
    assert tuned.name.startswith("Planted CPU, 8 cores, p95, sizes production, 2 workers")


def test_doubtful_rates_say_so_and_no_paper_knows_another_model():
    section = latency_bounded_section(
        groups(sources(bounded(10.0, RATES, invalid=("late",), model="other")))
    )
    found = charts(section)
    assert found["Rate within the SLA against B"].series[0].labels[0] == "static, invalid"
    assert "marked invalid" in found["Rate within the SLA against B"].note
    assert len(found["What tuning B brings"].series) == 1


def test_operators_under_ceilings():
    section = roofline_section(groups(sources(roofed())))
    (chart,) = charts(section).values()
    found = {one.name: one for one in chart.series}
    # 4e6 FLOPs over 1e6 bytes, in 2 ms: 4 FLOPs a byte and 2 GFLOP/s.
    assert (found["fc"].places, found["fc"].values) == ([4.0], [2.0])
    assert found["fc"].labels == ["64"]
    assert found["whole step"].values == [3.0]
    assert "interaction" not in found  # no FLOPs have no place on a logarithmic axis
    memory = found["memory in order, 20 GB/s"]
    assert [y / x for x, y in zip(memory.places, memory.values, strict=True)] == [20.0, 20.0]
    assert memory.values[1] == 400.0
    fp32, bf16 = found["fp32 products, 100 GFLOP/s"], found["bf16 products, 400 GFLOP/s"]
    assert (fp32.places[0], fp32.values) == (5.0, [100.0, 100.0])  # from 100 / 20 on
    assert (fp32.is_dashed, bf16.is_dashed) == (False, True)  # the model computes in fp32
    ceilings, operators = tables(section)
    assert [row[1:] for row in ceilings[:3]] == [
        ["1 MiB in order", 50.0, "GB/s"],
        ["1,024 MiB in order", 20.0, "GB/s"],
        ["rows gathered", 10.0, "GB/s"],
    ]
    assert operators[1][:7] == ["inference", 64, "fc", 2.0, 4.0, 2.0, 0.5]
    texts = [block.texts for block in section.blocks if isinstance(block, Notes)]
    assert texts[0] == ["inference of 64: Do less."]


def test_each_machine_has_a_roofline_of_its_own():
    both = roofed(), roofed(host=host("Other CPU"))
    section = roofline_section(groups(sources(*both)))
    (grid,) = [block for block in section.blocks if isinstance(block, Grid)]
    assert [chart.title for chart in grid.blocks] == [
        "Roofline, Planted CPU, 8 cores, inference, rmc1, rows_scale 0.5",
        "Roofline, Other CPU, 8 cores, inference, rmc1, rows_scale 0.5",
    ]


@pytest.mark.parametrize("name", ["colocate", "latency-bounded", "roofline"])
def test_a_result_without_its_conclusion_is_refused(tmp_path, name):
    path = tmp_path / "a.json"
    write_result(path, result([measured({}, 1.0)], name))
    with pytest.raises(DataError, match=rf"a.json: a result of `fastdlrm bench {name}` without"):
        read_sources([path])
