"""safetensors files of whole tensors or pieces of them, read without holding a file in memory.

A file's metadata says where each piece starts, in the words of torch's HuggingFaceStorageReader,
which reads these files too. Reading maps no file: what safetensors' own reader maps counts as the
process's memory, and no file can be larger than the machine's.
"""

import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastdlrm.contracts.manifest import FileEntry, entry_of
from fastdlrm.errors import CheckpointError

READ_BYTES = 64 * 2**20
"""Most that is read at once, unless one row is larger."""
SHARDING = "DCP_SHARDING_INFO"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class StoredTensor(NamedTuple):
    """A tensor in a file, or a piece of one.

    Attributes:
        path: The file.
        first_byte: Where its numbers begin.
        dtype: Of its numbers.
        shape: Its own.
        offsets: Where it starts in the whole, one number a dimension.
    """

    path: Path
    first_byte: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...]


class _Entry(msgspec.Struct):
    """What a file's header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Place(msgspec.Struct):
    """What a file's metadata says of a tensor."""

    saved_offsets: tuple[int, ...]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], offsets: Mapping[str, Sequence[int]]
) -> FileEntry:
    """Write a file and sync it; a contiguous tensor on the CPU is not copied.

    Args:
        path: The file.
        tensors: By name.
        offsets: Where each starts in the whole, by name.
    """
    sharding = {name: {"saved_offsets": list(start)} for name, start in offsets.items()}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", SHARDING: json.dumps(sharding)}
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path, metadata)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return entry_of(path)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """What a file holds, by name.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), num_bytes)
            header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str])
        places = msgspec.json.decode(metadata.get(SHARDING, "{}"), type=dict[str, _Place])
        return {
            name: _stored(path, name, msgspec.json.decode(raw, type=_Entry), places, 8 + length)
            for name, raw in header.items()
        }
    except (ValueError, msgspec.MsgspecError) as problem:
        raise CheckpointError(f"{path}: damaged: {problem}; use another checkpoint") from problem


def copy_from(stored: StoredTensor, offsets: Sequence[int], target: Tensor) -> None:
    """Copy a part of a stored tensor over a live one, at most READ_BYTES at a time.

    Args:
        stored: The source.
        offsets: Where the part starts in it.
        target: As large as the part, on any device and of any type.

    Raises:
        CheckpointError: The file ends too soon.
    """
    if target.dim() == 0:
        stored, offsets, target = stored._replace(shape=(1,)), (0,), target.view(1)
    row_bytes = prod(stored.shape[1:]) * stored.dtype.itemsize
    num_rows = min(max(READ_BYTES // row_bytes, 1), len(target))
    buffer = torch.empty(num_rows * row_bytes, dtype=torch.uint8)
    with stored.path.open("rb") as file:
        file.seek(stored.first_byte + offsets[0] * row_bytes)
        for rows in target.split(num_rows):
            read = buffer[: len(rows) * row_bytes]
            if file.readinto(read.numpy().data) < len(read):
                raise CheckpointError(f"{stored.path}: ends too soon; use another checkpoint")
            part = read.view(stored.dtype).view(len(rows), *stored.shape[1:])
            for dim in range(1, target.dim()):
                part = part.narrow(dim, offsets[dim], target.shape[dim])
            with torch.no_grad():
                rows.copy_(part)


def _stored(
    path: Path, name: str, entry: _Entry, places: Mapping[str, _Place], header_bytes: int
) -> StoredTensor:
    """An entry, checked against its type, its shape and the size of the file."""
    first, last = entry.data_offsets
    shape = entry.shape
    if entry.dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} is of type {entry.dtype!r}")
    dtype = DTYPES[entry.dtype]
    if min(shape, default=0) < 0 or last - first != prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} of shape {shape} has {last - first} bytes")
    if first < 0 or header_bytes + last > path.stat().st_size:
        raise ValueError(f"tensor {name!r} ends after the file")
    offsets = places[name].saved_offsets if name in places else (0,) * len(shape)
    if len(offsets) != len(shape) or min(offsets, default=0) < 0:
        raise ValueError(f"tensor {name!r} of shape {shape} starts at {offsets}")
    return StoredTensor(path, header_bytes + first, dtype, shape, offsets)
