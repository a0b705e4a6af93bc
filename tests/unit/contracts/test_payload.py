"""Payloads in shared memory: layout by hand, views, and damage."""

import msgspec
import numpy as np
import pytest

from fastdlrm.contracts.payload import HEAD, MARK, pack, unpack
from fastdlrm.contracts.tensors import DATATYPES, WireTensor
from fastdlrm.errors import RequestError


def test_layout_by_hand() -> None:
    payload = pack(
        {"a": WireTensor.from_texts(["x"]), "bb": WireTensor.from_list("INT64", (), [7])}
    )
    # [["a","BYTES",[1],5],["bb","INT64",[],8]] in msgpack
    descriptor = b"\x92\x94\xa1a\xa5BYTES\x91\x01\x05\x94\xa2bb\xa5INT64\x90\x08"
    head = b"FDP1" + len(descriptor).to_bytes(4, "little") + descriptor  # 8 + 25 = 33
    assert len(head) == 33
    first = b"\x01\0\0\0x"  # at 40, ends at 45
    second = b"\x07" + b"\0" * 7  # at 48, ends at 56
    assert payload.to_bytes() == head + b"\0" * 7 + first + b"\0" * 3 + second
    assert payload.size == 56


def test_tensors_are_aligned_views() -> None:
    sent = {
        name: WireTensor.from_array(np.ones((3, 1), dtype=known.dtype))
        for name, known in DATATYPES.items()
        if known.size
    }
    sent["text"] = WireTensor.from_texts(["a", "", "é"])
    sent["none"] = WireTensor.from_list("FP64", (0, 5), [])
    payload = pack(sent)
    memory = np.zeros(payload.size + 100, dtype=np.uint64).view(np.uint8)
    payload.write_into(memory.data)
    found = unpack(memory.data)
    assert list(found) == list(sent)
    for name, tensor in found.items():
        assert tensor[:2] == sent[name][:2]
        assert tensor.data.tobytes() == sent[name].data.tobytes()
        assert tensor.data.flags.aligned
        assert tensor.data.size == 0 or np.shares_memory(tensor.data, memory)


def test_views_of_a_body_that_are_not_aligned_are_written() -> None:
    tensor = WireTensor.from_buffer("FP32", [1], memoryview(b"x\x00\x00\x80\x3f")[1:])
    assert unpack(memoryview(pack({"a": tensor}).to_bytes()))["a"].values().tolist() == [1.0]


def damaged(descriptor: bytes, mark: int = MARK, length: int | None = None) -> memoryview:
    head = HEAD.pack(mark, len(descriptor) if length is None else length)
    return memoryview(head + descriptor)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (memoryview(b"1234567"), "payload: 7 bytes, at least 8 are needed"),
        (damaged(b"\x90", mark=1), "payload: mark 0x1 and a descriptor of 1 bytes in 9"),
        (damaged(b"\x90", length=2), "payload: mark .* and a descriptor of 2 bytes in 9"),
        (damaged(b"\xc1"), "payload: its descriptor is damaged"),
        (damaged(b"\x91\x01"), "payload: its descriptor is damaged"),
        (
            damaged(msgspec.msgpack.encode([("a", "INT8", (4,), 4)])),
            "payload: input 'a' has 4 bytes at 24, past its end at 20",
        ),
        (
            damaged(msgspec.msgpack.encode([("a", "INT8", (4,), -4)]) + b"\0" * 16, length=12),
            "payload: input 'a' has -4 bytes",
        ),
        (
            damaged(msgspec.msgpack.encode([("a", "INT8", (4,), 3)]) + b"\0" * 16, length=12),
            "input 'a': 3 bytes of data, but shape",
        ),
    ],
)
def test_damaged_payloads_are_refused(view: memoryview, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        unpack(view)


def test_a_payload_needs_its_room() -> None:
    payload = pack({"a": WireTensor.from_texts(["x"])})
    with pytest.raises(ValueError, match=f"{payload.size} bytes into {payload.size - 1}; allocate"):
        payload.write_into(memoryview(bytearray(payload.size - 1)))
