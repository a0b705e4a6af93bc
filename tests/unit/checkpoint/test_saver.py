import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.checkpoint.saver import Saver
from fastdlrm.errors import CheckpointError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _groups(table: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"left": table[:, :3], "right": table[:, 3:]}, "loop": {}}


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    saver = Saver(tmp_path, keep=9)
    table = torch.zeros(40_000, 8)
    for step in range(1, 4):
        table.fill_(step)
        saver.save(step, _groups(table), {"epoch": step}, {"seed": 1})
        table.fill_(-1)
    assert saver.wait() == store.folder_of(tmp_path, 3)
    assert saver.wait() is None
    for step in range(1, 4):
        loaded = store.load(store.folder_of(tmp_path, step))
        assert loaded.state == {"epoch": step}
        assert loaded.tensors["loop"] == {}
        assert torch.equal(loaded.tensors["model"]["left"], torch.full((40_000, 3), float(step)))
        assert torch.equal(loaded.tensors["model"]["right"], torch.full((40_000, 5), float(step)))


def test_old_checkpoints_go_when_a_new_one_is_whole(tmp_path):
    saver = Saver(tmp_path, keep=2)
    for step in range(1, 6):
        saver.save(step, _groups(torch.zeros(4, 8)), {}, {}, best=2)
    saver.wait()
    assert store.steps(tmp_path) == [2, 4, 5]


def test_error_is_raised_once_at_the_next_wait(tmp_path):
    root = tmp_path / "run"
    root.write_text("")
    saver = Saver(root, keep=2)
    saver.save(1, _groups(torch.zeros(4, 8)), {}, {})
    with pytest.raises(CheckpointError, match=r"step-000000001: cannot be written: .*free space"):
        saver.save(2, _groups(torch.zeros(4, 8)), {}, {})
    root.unlink()
    saver.save(3, _groups(torch.zeros(4, 8)), {}, {})
    saver.wait()
    assert store.steps(root) == [3]


@pytest.mark.gpu
@needs_gpu
def test_what_is_saved_of_a_gpu_is_the_state_at_the_call(tmp_path):
    """The caller waits for no kernel, and kernels that follow do not touch the copy."""
    saver = Saver(tmp_path, keep=9)
    table = torch.zeros(4_000_000, 8, device="cuda")
    for step in range(1, 4):
        torch.cuda._sleep(10_000_000)
        table.fill_(step)
        saver.save(step, _groups(table), {}, {})
        table.fill_(-1)
    saver.wait()
    for step in range(1, 4):
        loaded = store.load(store.folder_of(tmp_path, step)).tensors["model"]
        assert all((part == step).all() for part in loaded.values())


@pytest.mark.gpu
@needs_gpu
def test_tables_in_page_locked_memory_are_saved_after_the_kernels_that_write_them(tmp_path):
    saver = Saver(tmp_path, keep=9)
    table, rows = torch.zeros(1000, 8, pin_memory=True), torch.ones(1000, 8, device="cuda")
    torch.cuda._sleep(100_000_000)  # the table is written long after the call
    table.copy_(rows, non_blocking=True)
    saver.save(1, _groups(table), {}, {})
    saver.wait()
    loaded = store.load(store.folder_of(tmp_path, 1)).tensors["model"]
    assert all((part == 1).all() for part in loaded.values())
