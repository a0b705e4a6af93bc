import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.errors import CheckpointError


def _tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    table = torch.full((6, 2), value)
    return {"model": {"a": table[:4], "b": table[4:]}, "loop": {"loss": torch.tensor(value)}}


def test_round_trip(tmp_path):
    folder = store.save(tmp_path, 3, _tensors(1.5), {"epoch": 2}, {"seed": 1})
    loaded = store.load(folder)
    assert loaded.step == 3
    assert loaded.state == {"epoch": 2}
    assert torch.equal(loaded.tensors["model"]["a"], torch.full((4, 2), 1.5))
    assert torch.equal(loaded.tensors["loop"]["loss"], torch.tensor(1.5))


def test_prune_keeps_the_last_and_the_best(tmp_path):
    for step in range(1, 7):
        store.save(tmp_path, step, _tensors(step), {}, {})
    (tmp_path / ".step-000000009.partial").mkdir()
    store.prune(tmp_path, keep=2, best=3)
    assert store.steps(tmp_path) == [3, 5, 6]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_unfinished_checkpoint_does_not_exist(tmp_path):
    folder = store.save(tmp_path, 1, _tensors(1), {}, {})
    (folder / "manifest.json").unlink()
    assert store.steps(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"step-000000001: no manifest\.json"):
        store.load(folder)


def test_cut_file_is_refused(tmp_path):
    folder = store.save(tmp_path, 1, _tensors(1), {}, {})
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: \d+ bytes, the manifest says"):
        store.load(folder)


def test_damaged_file_is_refused(tmp_path):
    folder = store.save(tmp_path, 1, _tensors(1), {}, {})
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        store.load(folder)


def test_missing_group_is_named(tmp_path):
    folder = store.save(tmp_path, 1, _tensors(1), {}, {})
    with pytest.raises(CheckpointError, match="no group 'optimizer'; it holds loop, model"):
        store.load(folder, groups=("model", "optimizer"))


def test_unwritable_root_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*free space"):
        store.save(tmp_path / "file", 1, _tensors(1), {}, {})


def test_copy_into_refuses_another_model():
    ours = {"a": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="here: tensor 'b' is only in the checkpoint"):
        store.copy_into(ours, {"a": torch.ones(2), "b": torch.ones(2)}, "here")
    with pytest.raises(CheckpointError, match="here: tensor 'a' is only in the model"):
        store.copy_into(ours, {}, "here")
    with pytest.raises(CheckpointError, match=r"'a' has shape \(3,\), the model wants \(2,\)"):
        store.copy_into(ours, {"a": torch.ones(3)}, "here")
    store.copy_into(ours, {"a": torch.ones(2)}, "here")
    assert ours["a"].tolist() == [1, 1]


def test_own_checkpoints_load_without_pickle(tmp_path):
    """The reference's own checkpoints fail torch.load's safe default (numpy scalars inside)."""
    folder = store.save(tmp_path, 1, _tensors(1), {"best_value": 0.75}, {})
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    assert store.load(folder).state == {"best_value": 0.75}
