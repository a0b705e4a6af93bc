"""Tensors as front and worker exchange them through shared memory.

A payload is a u32 mark, the u32 length of a descriptor, the descriptor (msgpack: name, datatype,
shape and size in bytes of each tensor), then each tensor's data at the next multiple of 8 bytes.
In memory that is aligned to 8 bytes, so is all data; reading copies nothing.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from fastdlrm.contracts.tensors import WireTensor, place, view_tensor
from fastdlrm.errors import RequestError

MARK = 0x31504446
"""The bytes "FDP1": this layout, first version."""
ALIGNMENT = 8
HEAD = struct.Struct("<II")

Descriptor = list[tuple[str, str, tuple[int, ...], int]]
ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(Descriptor)


class Payload(NamedTuple):
    """Tensors ready to be written, and the bytes that takes."""

    descriptor: bytes
    tensors: Sequence[WireTensor]
    size: int

    def write_into(self, view: memoryview) -> None:
        """Write the payload at the start of `view`, bytes that hold at least `size`.

        Raises:
            ValueError: `view` is shorter.
        """
        if view.nbytes < self.size:
            raise ValueError(f"a payload of {self.size} bytes into {view.nbytes}; allocate `size`")
        stop = HEAD.size + len(self.descriptor)
        HEAD.pack_into(view, 0, MARK, len(self.descriptor))
        view[HEAD.size : stop] = self.descriptor
        for tensor in self.tensors:
            start = aligned(stop)
            stop = start + tensor.data.nbytes
            view[start:stop] = tensor.data.view(np.uint8).data

    def to_bytes(self) -> bytes:
        """The payload in memory of its own."""
        buffer = bytearray(self.size)
        self.write_into(memoryview(buffer))
        return bytes(buffer)


def pack(inputs: Mapping[str, WireTensor]) -> Payload:
    """Lay out tensors; nothing is copied before `Payload.write_into`."""
    tensors = list(inputs.values())
    descriptor = ENCODER.encode(
        [
            (name, tensor.datatype, tensor.shape, tensor.data.nbytes)
            for name, tensor in inputs.items()
        ]
    )
    stop = HEAD.size + len(descriptor)
    for tensor in tensors:
        stop = aligned(stop) + tensor.data.nbytes
    return Payload(descriptor, tensors, aligned(stop))


def unpack(view: memoryview) -> dict[str, WireTensor]:
    """Read a payload; the tensors are views of it, so it must stay while they are used.

    Args:
        view: Bytes that begin with a payload; more may follow.

    Raises:
        RequestError: It is no payload, or a size in it does not fit.
    """
    if view.nbytes < HEAD.size:
        raise RequestError(f"payload: {view.nbytes} bytes, at least {HEAD.size} are needed")
    mark, length = HEAD.unpack_from(view, 0)
    stop = HEAD.size + length
    if mark != MARK or stop > view.nbytes:
        raise RequestError(
            f"payload: mark {mark:#x} and a descriptor of {length} bytes in {view.nbytes}; "
            f"{MARK:#x} and a descriptor within it are needed"
        )
    try:
        descriptor = DECODER.decode(view[HEAD.size : stop])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"payload: its descriptor is damaged ({error})") from None
    tensors: dict[str, WireTensor] = {}
    for name, datatype, shape, size in descriptor:
        start = aligned(stop)
        if not 0 <= size <= view.nbytes - start:
            raise RequestError(
                f"payload: {place('input', name)} has {size} bytes at {start}, past its end at "
                f"{view.nbytes}"
            )
        tensors[name] = view_tensor(datatype, shape, view, start, size, place("input", name))
        stop = start + size
    return tensors


def aligned(size: int) -> int:
    """The next multiple of `ALIGNMENT` from `size` on."""
    return (size + ALIGNMENT - 1) & -ALIGNMENT
