"""The choice of a way to multiply: exactness before speed, and a gain worth a change."""

import pytest
import torch

from fastdlrm.kernels.cpu.matmul import MAX_ERROR, PRECISIONS, apply, calibrate, choose

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


def test_applying_sets_torchs_precision() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for way, precision in PRECISIONS.items():
            apply(way)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
