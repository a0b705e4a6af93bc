"""The choice of a way to multiply: exactness before speed, and a gain worth a change."""

from collections.abc import Iterator

import pytest
import torch

from fastdlrm.kernels.cpu.matmul import (
    MAX_ERROR,
    PRECISIONS,
    apply,
    calibrate,
    choose,
    relative_error,
)
from fastdlrm.kernels.registry import Way

EXACT = {"default": 3e-7, "onednn": 4e-7}


@pytest.mark.parametrize(
    ("default", "onednn", "error", "way"),
    [
        (195.0, 440.0, EXACT, "onednn"),
        (300.0, 250.0, EXACT, "default"),
        (300.0, 320.0, EXACT, "default"),  # 1.07 times: could be 0.95 the next time
        (195.0, 900.0, {"default": 3e-7, "onednn": 2e-3}, "default"),  # bfloat16 inside
    ],
)
def test_choice(default: float, onednn: float, error: dict[str, float], way: str) -> None:
    found, reason = choose({"default": default, "onednn": onednn, "bf16": 0.0}, error)
    assert found == way
    assert reason


def test_record_of_this_machine() -> None:
    before = torch.get_float32_matmul_precision()
    record = calibrate()
    assert torch.get_float32_matmul_precision() == before
    assert record.way in PRECISIONS
    assert set(record.gflop_s) == {"default", "onednn", "bf16"}
    assert all(speed > 0 for speed in record.gflop_s.values())
    assert record.error[record.way] <= MAX_ERROR


@pytest.fixture
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("way", PRECISIONS)
def test_applying_sets_torchs_precision(way: Way) -> None:
    taken = apply(way)
    assert torch.get_float32_matmul_precision() == PRECISIONS[taken]
    assert taken == (way if relative_error(way) <= MAX_ERROR else "default")


@pytest.mark.usefixtures("_precision")
def test_a_way_that_rounds_here_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdlrm.kernels.cpu.matmul.MAX_ERROR", 0.0)  # no way is that exact
    assert apply("onednn") == "default"
    assert torch.get_float32_matmul_precision() == "highest"
