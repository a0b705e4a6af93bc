"""What front, nursery and workers say to each other: one message a datagram, on socket pairs.

SOCK_SEQPACKET keeps messages apart and in order, and tells of the other side's end: Linux.
"""

import socket
from typing import Any

import msgspec

from fastdlrm.errors import ServeError

NURSERY_BYTES = 1 << 16
"""The longest message from or to the nursery."""
WORK_BYTES_A_ROW = 48
"""A part of one row in a `Work` is at most so long; its scores and an error's place are shorter."""
REPLY_ROOM = 1 << 15
"""Bytes of a `Done` for errors; see `MAX_ERROR`."""
TEXT_HEAD_BYTES = 4
"""Before a text in msgpack; longer than what an empty one has."""
MAX_INT = 2**31 - 1
"""Of a socket option."""
MAX_ERROR = 2000
"""Characters of an error's text."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with."""

    index: int
    """Its number among the engine's workers."""
    loader: str
    """module:function that loads the model."""
    folder: str
    check: bool
    """Whether to check the model's files and golden scores."""
    device: str
    program: str
    max_batch_rows: int
    core: int = -1
    """Core to stay on; -1: any."""


class Spawn(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Front to nursery, with the fds of the worker's socket and of the arena: start a worker."""

    number: int
    task: Task
    path: list[str]
    """sys.path of the front."""


class Kill(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Front to nursery: end a worker."""

    number: int


class Spawned(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Nursery to front: a worker's process id."""

    number: int
    pid: int


class Exited(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Nursery to front: a worker ended; `code` is its exit code, or minus the signal's number."""

    number: int
    code: int


class Work(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Front to worker: score these parts, each (offset, size, first row, behind the last row)."""

    parts: list[tuple[int, int, int, int]]


class Apply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Front to worker: apply a delta."""

    path: str


class Problem(msgspec.Struct, frozen=True, array_like=True):
    """What went wrong, by name of the error's class."""

    kind: str
    text: str


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Worker to front: the model is loaded, checked and warm."""

    measured: list[tuple[int, float]]
    """Batches as they were measured: rows, seconds."""
    examples: list[dict[str, Any]]
    """Raw rows of the model."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Worker to front: the model cannot be loaded."""

    problem: Problem


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Worker to front: the answer to the oldest `Work`."""

    scores: bytes
    """float32 of all parts that have scores, in order."""
    problems: dict[int, Problem]
    """By index of the part; these have no scores."""
    encode_ns: int
    compute_ns: int
    busy_ns: int
    """From having the message to having the answer."""


class Applied(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Worker to front: the answer to an `Apply`."""

    sequence: int
    created_s: float | None
    problem: Problem | None = None


ENCODER = msgspec.msgpack.Encoder()
encode = ENCODER.encode
to_worker = msgspec.msgpack.Decoder(Work | Apply).decode
from_worker = msgspec.msgpack.Decoder(Ready | Failed | Done | Applied).decode
to_nursery = msgspec.msgpack.Decoder(Spawn | Kill).decode
from_nursery = msgspec.msgpack.Decoder(Spawned | Exited).decode


def message_bytes(max_batch_rows: int) -> int:
    """The longest message between front and worker."""
    return REPLY_ROOM + WORK_BYTES_A_ROW * max_batch_rows


def make_pair(longest: int) -> tuple[socket.socket, socket.socket]:
    """A pair of sockets for messages up to `longest` bytes.

    Raises:
        ServeError: The system has no such sockets, or allows no message as long.
    """
    if not hasattr(socket, "SOCK_SEQPACKET"):
        raise ServeError(
            "workers need sockets of kind SOCK_SEQPACKET, which Linux has; serve there"
        )
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, min(2 * longest, MAX_INT))
        allowed = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        if allowed < longest:
            for other in pair:
                other.close()
            raise ServeError(
                f"messages of {longest} bytes between server and workers; the system allows "
                f"{allowed}: lower batching.max_batch_rows, or raise net.core.wmem_max"
            )
    return pair


def encode_within(message: Done | Ready, longest: int) -> bytes:
    """A message of at most `longest` bytes: texts of errors are cut, examples left out."""
    content = encode(message)
    if len(content) <= longest:
        return content
    if isinstance(message, Ready):
        fewer = message.examples[: len(message.examples) // 2]
        return encode_within(msgspec.structs.replace(message, examples=fewer), longest)
    bare = {index: Problem(problem.kind, "") for index, problem in message.problems.items()}
    left = longest - len(encode(msgspec.structs.replace(message, problems=bare)))
    each = left // len(bare) - TEXT_HEAD_BYTES
    cut = {
        index: Problem(problem.kind, problem.text.encode()[:each].decode(errors="ignore"))
        for index, problem in message.problems.items()
    }
    return encode(msgspec.structs.replace(message, problems=cut))


def problem_of(error: BaseException, where: str = "") -> Problem:
    """An error as it is sent."""
    text = f"{where}{error}"
    return Problem(type(error).__name__, text if len(text) <= MAX_ERROR else text[:MAX_ERROR])
