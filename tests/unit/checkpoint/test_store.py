import msgspec
import pytest
import torch
from safetensors.torch import save_file

from fastdlrm.checkpoint import store
from fastdlrm.contracts.manifest import (
    CheckpointManifest,
    entry_of,
    read_manifest,
    write_manifest,
)
from fastdlrm.errors import CheckpointError
from fastdlrm.parallel.tensor_shard import TensorShard


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


def test_own_checkpoints_load_without_pickle(tmp_path):
    """The reference's own checkpoints fail torch.load's safe default (numpy scalars inside)."""
    folder = store.save(tmp_path, 1, _tensors(1), {"best_value": 0.75}, {})
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    assert store.load(folder).state == {"best_value": 0.75}


def test_load_into_fills_live_tensors_in_place(tmp_path):
    folder = store.save(tmp_path, 1, _tensors(2.5), {}, {})
    stack = torch.zeros(6, 4)
    live = {"a": stack[:4, 1:3], "b": TensorShard(stack[5:, 1:3], (2, 2), (1, 0))}
    store.load_into(folder, {"model": live})
    assert stack.sum(1).tolist() == [5, 5, 5, 5, 0, 5]
    assert stack[:, 1:3].count_nonzero() == stack.count_nonzero()


def test_load_into_refuses_another_model(tmp_path):
    folder = store.save(tmp_path, 1, _tensors(1), {}, {})
    a, b = torch.zeros(4, 2), torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match="step-000000001/model: tensor 'b' is only in the ch"):
        store.load_into(folder, {"model": {"a": a}})
    with pytest.raises(CheckpointError, match="model: tensor 'c' is only in the model; load it"):
        store.load_into(folder, {"model": {"a": a, "b": b, "c": a}})
    with pytest.raises(CheckpointError, match=r"'a' has shape \(4, 2\), the model wants \(4,\)"):
        store.load_into(folder, {"model": {"a": a[:, 0], "b": b}})
    with pytest.raises(CheckpointError, match=r"'a' has shape \(4, 2\), the model wants \(9, 2\)"):
        store.load_into(folder, {"model": {"a": TensorShard(a, (9, 2), (5, 0)), "b": b}})
    with pytest.raises(CheckpointError, match="no group 'tables'; it holds loop, model"):
        store.load_into(folder, {"tables": {}})


def test_tensor_with_a_gap_is_refused(tmp_path):
    piece = TensorShard(torch.ones(3, 2), (4, 2), (1, 0))
    folder = store.save(tmp_path, 1, {"model": {"a": piece}}, {}, {})
    with pytest.raises(CheckpointError, match="tensor 'a': 6 of 8 numbers are stored; use another"):
        store.load(folder)


def test_files_without_places_are_whole_tensors(tmp_path):
    """As safetensors itself writes them."""
    folder = store.save(tmp_path, 1, _tensors(1), {}, {})
    path = folder / "model.safetensors"
    save_file({"a": torch.full((4, 2), 7.0), "b": torch.full((2, 2), 8.0)}, path)
    manifest = read_manifest(folder, CheckpointManifest)
    files = manifest.files | {path.name: entry_of(path)}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    loaded = store.load(folder, groups=("model",)).tensors
    assert loaded.keys() == {"model"}
    assert loaded["model"]["a"].tolist() == [[7, 7]] * 4
    assert loaded["model"]["b"].tolist() == [[8, 8]] * 2
