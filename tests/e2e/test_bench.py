"""`fastdlrm bench` as a user types it, on the smallest tables."""

import json

import pytest

from fastdlrm.contracts.bench_result import read_result
from tests.builders import fastdlrm

TINY = ("--rows-scale", 0.001, "--quick", "--seconds", 0.02, "--device", "cpu")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two results of the same, and what the first command printed."""
    folder = tmp_path_factory.mktemp("bench")
    command = ("bench", "batch", "--model", "rmc1", "--batches", "1,8", *TINY)
    text = fastdlrm(*command, "--out", folder / "a.json")
    fastdlrm(*command, "--out", folder / "b.json", "--threads", 1)
    return folder, text


def test_batch(measured):
    folder, text = measured
    result = read_result(folder / "a.json")
    assert "batch  rmc1, rows_scale 0.001, cpu" in text
    assert result.rows_scale == 0.001
    assert [group["max_rows"] for group in result.config["data"]["sparse"]] == [4000]
    assert [found.key["batch_size"] for found in result.measurements] == ["1", "8"]
    for found in result.measurements:
        assert found.summary.low <= found.summary.median <= found.summary.high
        rows = int(found.key["batch_size"])
        assert found.samples_per_s == pytest.approx(rows / found.summary.median * 1e3)
        assert sum(map(len, found.rounds)) == found.summary.num_samples
    assert result.host.copy_gb_s["cpu"] > 0
    assert read_result(folder / "b.json").host.num_threads == 1


def test_compare(measured):
    folder, _ = measured
    files = folder / "a.json", folder / "b.json"
    text = fastdlrm("bench", "compare", *files)
    assert "B/A" in text
    found = json.loads(fastdlrm("bench", "compare", *files, "--json"))
    assert [row["key"]["batch_size"] for row in found["rows"]] == ["1", "8"]
    same = json.loads(fastdlrm("bench", "compare", files[0], files[0], "--json"))
    assert {row["ratios"][0]["verdict"] for row in same["rows"]} == {"no difference"}
    assert "no such file" in fastdlrm("bench", "compare", files[0], folder / "c.json", code=1)


@pytest.mark.parametrize("model", ["rmc3", "ncf", "random"])
def test_operators(tmp_path, model):
    """With cat and with dot interaction, with bags and without, with dense features and without."""
    out = tmp_path / "o.json"
    command = ("bench", "operators", "--model", model, "--batches", 16, *TINY)
    text = fastdlrm(*command, "--out", out)
    result = read_result(out)
    assert "embedding_bag %" in text
    assert "counters, inference of 16: " in text
    by_pass = {"inference": {}, "training": {}}
    for found in result.measurements:
        by_pass[found.key["pass"]][found.key["operator"]] = found
    for steps in by_pass.values():
        assert set(steps) == {"step", "embedding_bag", "interaction", "fc", "other"}
        parts = [steps[name] for name in ("embedding_bag", "fc", "interaction")]
        assert steps["step"].flop == sum(part.flop for part in parts)
        assert steps["step"].num_bytes == sum(part.num_bytes for part in parts)
        assert all(part.summary.median > 0 for part in parts[:2])
        assert parts[2].summary.median > 0 or model == "ncf"  # whose vectors lie joined already
        facts = steps["step"].counters.values()
        assert facts
        assert all(fact.value is not None or fact.reason for fact in facts)
    training, inference = by_pass["training"], by_pass["inference"]
    assert training["fc"].flop > 2 * inference["fc"].flop * 0.99


def test_where_the_time_goes_tells_models_apart(tmp_path):
    """Of rmc3 most is linear layers, of rmc2 embedding bags (arXiv:1906.03109, figure 7)."""
    dominant = {}
    for model in ("rmc2", "rmc3"):
        out = tmp_path / f"{model}.json"
        options = ("--passes", "inference", "--batches", 64, *TINY)
        fastdlrm("bench", "operators", "--model", model, *options, "--out", out)
        times = {m.key["operator"]: m.summary.median for m in read_result(out).measurements}
        times.pop("step")
        dominant[model] = max(times, key=times.get)
    assert dominant == {"rmc2": "embedding_bag", "rmc3": "fc"}


def test_mistakes_are_told_in_one_line(tmp_path):
    out = ("--out", tmp_path / "o.json")
    told = fastdlrm("bench", "batch", "--model", "tiny", *out, code=2)
    assert "there are no values to make a vocabulary of" in told
    told = fastdlrm("bench", "batch", "--model", "rmc1", "--rows-scale", 2, *out, code=2)
    assert told == "error: --rows-scale 2: above 0 and up to 1 is allowed\n"
    assert not (tmp_path / "o.json").exists()


def test_roofline(tmp_path):
    """With dot interaction, dense features and bags."""
    out = tmp_path / "r.json"
    command = ("bench", "roofline", "--model", "random", "--batches", 16, *TINY, "--threads", 1)
    text = fastdlrm(*command, "--out", out)
    result = read_result(out)
    found = result.roofline
    assert {"fp32", "bf16"} <= set(found.ceilings.gflop_s)
    assert min(found.ceilings.gflop_s.values()) > 0
    assert found.ceilings.memory_gb_s > 0
    assert found.ceilings.gather_gb_s > 0
    assert [(step.kind, step.batch_size) for step in found.steps] == [
        ("inference", 1), ("inference", 16), ("training", 1), ("training", 16)
    ]  # fmt: skip
    for step in found.steps:
        parts = {one.operator: one for one in step.operators}
        assert set(parts) == {"embedding_bag", "interaction", "fc", "other", "between"}
        assert sum(one.ms for one in step.operators) == pytest.approx(step.step.ms)
        assert 0 < step.step.floor_ms <= step.step.ms
        assert step.advice.operator in parts
        assert f"{step.kind} of {step.batch_size}: {step.advice.sentence}" in text
    assert any("all-to-all is not measured: it needs ranks" in note for note in result.notes)
    assert all(found.rounds for found in result.measurements)
    compared = fastdlrm("bench", "compare", out, out)
    assert "gemm fp32" in compared
    assert "embedding_bag" in compared


LOOSE = ("--sla-ms", 500, "--max-lateness-ms", 2000, "--rows-scale", 0.001, "--workers", 1)


@pytest.mark.parametrize(
    ("model", "mode"),
    [("rmc1", "search"), pytest.param("ncf", "reference", marks=pytest.mark.slow)],
)
def test_latency_bounded(tmp_path, model, mode):
    """On the project's server, as a process, with bags and without; which rate, a loaded machine
    decides."""
    out = tmp_path / "l.json"
    # The reference's window of 64 at gaps of 20 ms is 1.3 s: 24 of them are long, one B of them.
    sizes = "fixed:16" if mode == "search" else "fixed:2"
    offload = ("--offload-device", "cpu", "--offload", 16) if mode == "search" else ()
    text = fastdlrm(
        *("bench", "latency-bounded", "--model", model, "--quick", "--seconds", 0.3, *LOOSE),
        *("--sizes", sizes, "--batches", 16, "--mode", mode, "--no-sweep", *offload),
        *("--out", out),
    )
    found = read_result(out).latency_bounded
    assert found.mode == mode
    assert found.is_quick
    assert found.tuned in [rung.rows for rung in found.rungs]
    assert set(found.visited) == {rung.rows for rung in found.rungs}
    assert "quick: short probes" in text
    for rung in found.rungs:
        assert len(rung.rates) == 1
        if mode == "search":
            best = max((p.rate for p in rung.probes if p.passed), default=0.0)
            assert rung.rates[0] == best
            assert all(p.passed or p.why for p in rung.probes)
        else:
            assert len(rung.updates[0]) == 24
            assert 50 <= rung.rates[0] <= 1000
    if mode == "search":
        assert found.static == 16
        assert f"static B {found.static}" in text
        (rung,) = found.offload.rungs
        assert (rung.rows, rung.offload_min_rows) == (found.tuned, 16)
        assert found.offload.tuned in (0, 16)
        assert found.offload.queries_share == (1.0 if found.offload.tuned else 0.0)
        assert "queries from a size on whole to a worker on cpu" in text


def test_latency_bounded_needs_an_sla(tmp_path):
    command = ("bench", "latency-bounded", "--model", "random", "--out", tmp_path / "o.json")
    told = fastdlrm(*command, code=2)
    assert told == "error: model 'random' has no sla_ms; give --sla-ms\n"
