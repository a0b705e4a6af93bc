import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdlrm.checkpoint import tensor_file
from fastdlrm.checkpoint.tensor_file import copy_from, stored_tensors, write_tensors
from fastdlrm.errors import CheckpointError

TENSORS = {
    "table": torch.arange(60, dtype=torch.float32).view(12, 5),
    "half": torch.arange(8).view(4, 2).bfloat16(),
    "rows": torch.arange(7, dtype=torch.float64),
    "scalar": torch.tensor(2**40 + 1),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
    "cube": torch.arange(24, dtype=torch.int32).view(2, 3, 4),
}


def _read(stored, offsets, shape) -> torch.Tensor:
    target = torch.full(shape, 77).to(stored.dtype)
    copy_from(stored, offsets, target)
    return target


def test_file_is_what_the_library_reads(tmp_path):
    path = tmp_path / "a.safetensors"
    strided = {"column": TENSORS["table"][:, 1:3]}
    offsets = {name: (0,) * t.dim() for name, t in TENSORS.items()} | {"column": (0, 9)}
    entry = write_tensors(path, TENSORS | strided, offsets)
    assert entry.size_bytes == path.stat().st_size
    loaded = load_file(path)
    assert loaded.keys() == (TENSORS | strided).keys()
    for name, tensor in (TENSORS | strided).items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(path, "pt") as file:
        sharding = json.loads(file.metadata()["DCP_SHARDING_INFO"])
    assert sharding["column"] == {"saved_offsets": [0, 9]}
    assert stored_tensors(path)["column"].offsets == (0, 9)


@pytest.mark.parametrize("read_bytes", [1, 48, 2**20])
def test_parts_are_read_in_pieces(tmp_path, monkeypatch, read_bytes):
    """A row of "table" has 20 bytes: one, two or all rows at a time."""
    monkeypatch.setattr(tensor_file, "READ_BYTES", read_bytes)
    save_file(TENSORS, tmp_path / "a.safetensors")  # as any program writes them
    stored = stored_tensors(tmp_path / "a.safetensors")
    for name, tensor in TENSORS.items():
        assert (stored[name].dtype, stored[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.numel():
            whole = _read(stored[name], (0,) * tensor.dim(), tensor.shape)
            assert torch.equal(whole, tensor), name
    table, rows = TENSORS["table"], TENSORS["rows"]
    assert torch.equal(_read(stored["table"], (3, 0), (6, 5)), table[3:9])
    assert torch.equal(_read(stored["table"], (2, 1), (9, 2)), table[2:11, 1:3])
    assert torch.equal(_read(stored["rows"], (4,), (3,)), rows[4:])
    assert torch.equal(_read(stored["cube"], (1, 1, 2), (1, 2, 1)), TENSORS["cube"][1:, 1:, 2:3])
    stack = torch.zeros(12, 8, dtype=torch.float64)  # strided, of another type
    copy_from(stored["table"], (0, 0), stack[:, 2:7])
    assert torch.equal(stack[:, 2:7], table.double())
    assert stack[:, :2].count_nonzero() == stack[:, 7:].count_nonzero() == 0


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GOOD | {"dtype": "F7"}, "tensor 'x' is of type 'F7'"),
        (GOOD | {"shape": [3]}, r"tensor 'x' of shape \(3,\) has 8 bytes"),
        (GOOD | {"shape": [-2]}, r"tensor 'x' of shape \(-2,\) has 8 bytes"),
        (GOOD | {"data_offsets": [8, 16]}, "tensor 'x' ends after the file"),
        (GOOD | {"data_offsets": [-8, 0]}, "tensor 'x' ends after the file"),
        ({"shape": [2]}, "missing required field"),
    ],
)
def test_damaged_header_is_refused(tmp_path, entry, message):
    path = tmp_path / "a.safetensors"
    _write_raw(path, {"x": entry})
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: damaged: .*{message}.*; use anot"):
        stored_tensors(path)


def test_damaged_places_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    sharding = json.dumps({"x": {"saved_offsets": [1, 2]}})
    _write_raw(path, {"x": GOOD, "__metadata__": {"DCP_SHARDING_INFO": sharding}})
    with pytest.raises(CheckpointError, match=r"'x' of shape \(2,\) starts at \(1, 2\)"):
        stored_tensors(path)
    _write_raw(path, {"x": GOOD, "__metadata__": {"DCP_SHARDING_INFO": "{"}})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged"):
        stored_tensors(path)


def test_file_cut_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    _write_raw(path, {"x": GOOD})
    stored = stored_tensors(path)["x"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: ends too soon; use another"):
        _read(stored, (0,), (2,))


def _write_raw(path, header) -> None:
    """A file of 8 bytes of numbers."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
