from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from fastdlrm.errors import CheckpointError
from fastdlrm.kernels.cpu.matmul import is_exact
from fastdlrm.train.matmul import FILE, chosen, settle, use

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_a_run_keeps_its_choice(tmp_path: Path) -> None:
    assert chosen(tmp_path) is None
    first = settle(tmp_path, CPU)
    choice = chosen(tmp_path)
    assert choice is not None
    assert choice.way in first
    other = "onednn" if choice.way == "default" else "default"
    changed = msgspec.structs.replace(choice, way=other)
    (tmp_path / FILE).write_bytes(msgspec.json.encode(changed))
    said = settle(tmp_path, CPU)
    if not is_exact(other):
        assert "since the run's way is not exact" in said
        return
    assert "as the run began" in said
    precision = {"default": "highest", "onednn": "medium"}
    assert torch.get_float32_matmul_precision() == precision[other]
    torch.set_float32_matmul_precision(precision[choice.way])
    use(tmp_path, CPU)
    assert torch.get_float32_matmul_precision() == precision[other]


def test_a_gpu_has_no_choice(tmp_path: Path) -> None:
    assert settle(tmp_path, torch.device("cuda")) == ""
    use(tmp_path, torch.device("cuda"))
    assert not list(tmp_path.iterdir())


def test_damaged_file_is_said(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"matmul\.json: damaged: .*delete it"):
        settle(tmp_path, CPU)


def test_the_slower_precision_is_said(tmp_path: Path) -> None:
    settle(tmp_path, CPU)
    choice = chosen(tmp_path)
    assert choice is not None
    for speed, is_said in ((1.0, True), (1e6, False)):
        speeds = {**choice.gflop_s, "bf16": speed}
        changed = msgspec.structs.replace(choice, gflop_s=speeds)
        (tmp_path / FILE).write_bytes(msgspec.json.encode(changed))
        assert ("train.precision = 'fp32'" in settle(tmp_path, CPU, "bf16")) == is_said
        assert "train.precision" not in settle(tmp_path, CPU, "fp32")


def test_a_way_that_rounds_is_not_taken_over(tmp_path: Path, monkeypatch) -> None:
    """A run that began on another processor."""
    settle(tmp_path, CPU)
    choice = chosen(tmp_path)
    assert choice is not None
    (tmp_path / FILE).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(choice, way="onednn"))
    )
    monkeypatch.setattr("fastdlrm.kernels.cpu.matmul.MAX_ERROR", 0.0)  # no way is that exact
    assert "float32 products: default, since the run's way is not exact" in settle(tmp_path, CPU)
    assert torch.get_float32_matmul_precision() == "highest"
