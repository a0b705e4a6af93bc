"""A worker process: one model, one thread of torch, one batch after the other.

The model is loaded by a thread of the lowest priority, the loop runs on the main thread at normal
priority: a version that is loaded does not slow the one that serves. Invariants: answers come in
the order of the work; a part that fails, fails alone.
"""

import gc
import os
import signal
import socket
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdlrm.contracts.payload import unpack
from fastdlrm.errors import FastDLRMError, RequestError, ServeError
from fastdlrm.serve.arena import attach
from fastdlrm.serve.loading import ServedModel, load
from fastdlrm.serve.messages import (
    Applied,
    Apply,
    Done,
    Failed,
    Problem,
    Ready,
    Task,
    Work,
    encode,
    encode_within,
    message_bytes,
    problem_of,
    to_worker,
)

NICE = 10
"""By which a worker gives way to the front, which then admits at once what comes."""
LOADING_NICE = 19
GC_THRESHOLDS = (50_000, 50, 100)
"""Of Python's collector: a batch's objects are freed without it. What is there when serving begins
is frozen, too: a full collection of torch's and pyarrow's objects alone pauses for 40 ms."""


def run(task: Task, front: socket.socket, arena_fd: int) -> None:
    """Load, then serve until the front's end of the socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.nice(NICE)
    memory = attach(arena_fd)
    try:
        model, ready = _load_gently(task)
    except Exception as error:  # noqa: BLE001 told to the front, which names the worker
        front.send(encode(Failed(_described(error, "loading"))))
        return
    if task.core >= 0:
        os.sched_setaffinity(0, {task.core})
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    longest = message_bytes(task.max_batch_rows)
    front.send(encode_within(ready, longest))
    with torch.inference_mode():
        Worker(model, front, memory, longest).run()


class Worker:
    """Answers work and deltas.

    Args:
        model: What scores.
        front: Socket to the front.
        memory: The arena.
        longest: Bytes of the longest message.
    """

    def __init__(
        self, model: ServedModel, front: socket.socket, memory: memoryview, longest: int
    ) -> None:
        self._model = model
        self._front = front
        self._memory = memory
        self._buffer = memoryview(bytearray(longest))

    def run(self) -> None:
        """Until the front is gone."""
        front, buffer, longest = self._front, self._buffer, len(self._buffer)
        try:
            while length := front.recv_into(buffer):
                started_ns = perf_counter_ns()
                message = to_worker(buffer[:length])
                if isinstance(message, Work):
                    front.send(encode_within(self.answer(message, started_ns), longest))
                else:
                    front.send(encode(self.apply(message)))
        except (BrokenPipeError, ConnectionResetError):
            return  # the front is gone

    def answer(self, work: Work, started_ns: int) -> Done:
        """Score the parts of a batch."""
        problems: dict[int, Problem] = {}
        encoded: list[Any] = []
        for index, part in enumerate(work.parts):
            try:
                encoded.append(self._encode(part))
            except Exception as error:  # noqa: BLE001 this part fails, the others go on
                problems[index] = _described(error, "encoding")
        encoded_ns = perf_counter_ns()
        scores = self._predict(work, encoded, problems)
        stopped_ns = perf_counter_ns()
        return Done(
            scores,
            problems,
            encoded_ns - started_ns,
            stopped_ns - encoded_ns,
            stopped_ns - started_ns,
        )

    def apply(self, message: Apply) -> Applied:
        """Apply a delta."""
        try:
            return Applied(*self._model.apply(Path(message.path)))
        except Exception as error:  # noqa: BLE001 told to the front
            return Applied(0, None, _described(error, "applying a delta"))

    def _encode(self, part: tuple[int, int, int, int]) -> Any:
        offset, size, start, stop = part
        return self._model.encode(unpack(self._memory[offset : offset + size]), start, stop)

    def _predict(self, work: Work, encoded: list[Any], problems: dict[int, Problem]) -> bytes:
        """Scores of all parts that have any; of a batch that fails, each part is tried alone."""
        if not encoded:
            return b""
        good = [i for i in range(len(work.parts)) if i not in problems]
        num_rows = [work.parts[i][3] - work.parts[i][2] for i in good]
        try:
            return self._scores(encoded, sum(num_rows))
        except Exception as error:  # noqa: BLE001 one of the parts is at fault
            if len(good) == 1:
                problems[good[0]] = _described(error, "scoring")
                return b""
        scores = []
        for index, part, rows in zip(good, encoded, num_rows, strict=True):
            try:
                scores.append(self._scores([part], rows))
            except Exception as error:  # noqa: BLE001 this part fails, the others go on
                problems[index] = _described(error, "scoring")
        return b"".join(scores)

    def _scores(self, parts: Sequence[Any], num_rows: int) -> bytes:
        scores: NDArray[np.float32] = np.ascontiguousarray(self._model.predict(parts), np.float32)
        if scores.shape != (num_rows,):
            raise ServeError(f"{scores.shape} scores of {num_rows} rows; the model is at fault")
        return scores.tobytes()


def _load_gently(task: Task) -> tuple[ServedModel, Ready]:
    """Load and warm a model in a thread of the lowest priority.

    Raises:
        BaseException: What the thread raised.
    """
    loaded: list[tuple[ServedModel, Ready]] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADING_NICE)
            loaded.append(_load(task))
        except BaseException as error:  # noqa: BLE001 raised again below
            raised.append(error)

    thread = threading.Thread(target=work, name="load")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return loaded[0]


@torch.inference_mode()
def _load(task: Task) -> tuple[ServedModel, Ready]:
    torch.set_num_threads(1)
    model = load(task)
    measured = [(rows, seconds) for rows, seconds in model.warm(task.max_batch_rows)]
    examples = [dict(row) for row in model.examples]
    return model, Ready(measured, examples)


def _described(error: Exception, doing: str) -> Problem:
    """An error as it is sent; one that is not ours says where it was raised."""
    if isinstance(error, FastDLRMError | RequestError):
        return problem_of(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return problem_of(error, f"{doing}: {type(error).__name__}{place}: ")
