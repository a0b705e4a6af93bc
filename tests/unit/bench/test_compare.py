from pathlib import Path

import msgspec
import numpy as np
import pytest

from fastdlrm.bench.compare import compare, verdict
from fastdlrm.cli.bench_text import comparison_lines
from fastdlrm.errors import DataError
from tests.unit.bench.results import made

PATHS = (Path("a.json"), Path("b.json"))


def draws(mean: float, seed: int) -> tuple[float, ...]:
    return tuple(np.random.default_rng(seed).normal(mean, 0.1, 200))


def test_half_the_time_is_faster_and_the_same_is_no_difference():
    first = made({"1": draws(4.0, 1), "16": draws(4.0, 2)})
    second = made({"1": draws(2.0, 3), "16": draws(4.0, 4)})
    found = compare(PATHS, (first, second))
    half, same = (row.ratios[0] for row in found.rows)
    assert half.ratio == pytest.approx(0.5, abs=0.02)
    assert half.low < 0.5 < half.high
    assert half.verdict == "faster"
    assert same.verdict == "no difference"
    assert found.differences == {}
    assert compare(PATHS, (second, first)).rows[0].ratios[0].verdict == "slower"


def test_three_results_are_each_over_the_first():
    results = [made({"1": draws(mean, seed)}) for seed, mean in enumerate((4.0, 2.0, 8.0))]
    found = compare((*PATHS, Path("c.json")), results)
    assert [ratio.verdict for ratio in found.rows[0].ratios] == ["faster", "slower"]
    text = list(comparison_lines(found))
    assert any("B/A" in line and "C/A" in line for line in text)


def test_a_sure_difference_below_the_noise_is_none():
    assert verdict(1.005, 1.015, 1.01, noise=0.02) == "no difference"
    assert verdict(1.005, 1.015, 1.01, noise=0.001) == "slower"
    assert verdict(0.9, 1.3, 1.1, noise=0.02) == "no difference"
    assert verdict(0.8, 0.9, 0.85, noise=0.02) == "faster"


def test_what_not_both_have_is_named():
    first = made({"1": draws(1.0, 1), "16": draws(4.0, 2)})
    second = made({"1": draws(1.0, 1), "64": (0.0,) * 10})
    found = compare(PATHS, (first, second))
    assert [row.key for row in found.rows] == [{"batch_size": "1"}]
    assert found.left_out == ("batch_size 16", "batch_size 64")


def test_differences_and_load_are_told():
    first = made({"1": draws(1.0, 1)})
    host = msgspec.structs.replace(first.host, load_average=2.5)
    second = made({"1": draws(1.0, 1)}, commit="def", matmul="onednn", host=host)
    found = compare(PATHS, (first, second))
    assert found.differences == {
        "float32 products": ("default", "onednn"),
        "commit": ("abc", "def"),
    }
    (warning,) = found.warnings
    assert warning.startswith("b.json: 2.5 other processes ran")
    assert "warning  b.json" in "\n".join(comparison_lines(found))


@pytest.mark.parametrize(
    "changes", [{"benchmark": "operators"}, {"model": "rmc2"}, {"rows_scale": 1.0}]
)
def test_other_things_are_not_compared(changes):
    results = made({"1": draws(1.0, 1)}), made({"1": draws(1.0, 1)}, **changes)
    with pytest.raises(DataError, match=r"b\.json: benchmark, model and rows_scale are \("):
        compare(PATHS, results)


def test_other_configs_are_not_compared():
    results = made({"1": (1.0,) * 10}), made({"1": (1.0,) * 10}, config={"model": {}})
    with pytest.raises(DataError, match=r"b\.json: sections \['model'\] of the config differ"):
        compare(PATHS, results)


def test_nothing_in_common_is_an_error():
    results = made({"1": (1.0,) * 10}), made({"16": (1.0,) * 10})
    with pytest.raises(DataError, match="no measurement in common; run both"):
        compare(PATHS, results)


def test_a_higher_rate_is_faster():
    def rates(mean, seed):
        result = made({"1": draws(mean, seed)})
        (found,) = result.measurements
        renamed = msgspec.structs.replace(found, unit="queries/s")
        return msgspec.structs.replace(result, measurements=(renamed,))

    (row,) = compare(PATHS, (rates(2.0, 1), rates(4.0, 2))).rows
    assert row.ratios[0].verdict == "faster"
    assert compare(PATHS, (rates(4.0, 1), rates(2.0, 2))).rows[0].ratios[0].verdict == "slower"
