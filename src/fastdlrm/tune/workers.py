"""Processes that train trials side by side, each with its share of the cores and of the GPUs.

A process tells its evaluations through a pipe and is answered whether to go on; it opens no
database. It ends with the study's process, however that ends.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import msgspec
import torch

from fastdlrm.tune.trial import Order, Outcome, train_trial


class Evaluated(msgspec.Struct, frozen=True):
    """What a process tells of a running trial."""

    evaluation: int
    """From 1."""
    value: float


class Died(msgspec.Struct, frozen=True):
    """A process ended in the middle of a trial."""

    reason: str


Message = Evaluated | Outcome | Died


class Workers:
    """The processes of a study; a context that ends them.

    Args:
        count: How many.
        threads: Each computes with.
    """

    def __init__(self, count: int, threads: int) -> None:
        self._threads = threads
        self._context = multiprocessing.get_context("spawn")
        self._slots = [_Slot(place) for place in range(count)]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        for slot in self._slots:
            slot.end()

    @property
    def has_free(self) -> bool:
        """Whether one has nothing to do."""
        return any(slot.number is None for slot in self._slots)

    @property
    def are_idle(self) -> bool:
        """Whether none has anything to do."""
        return all(slot.number is None for slot in self._slots)

    def give(self, order: Order) -> None:
        """Have a free one train a trial; it is started where there is none, or none any more."""
        slot = next(slot for slot in self._slots if slot.number is None)
        if slot.process is None or not slot.process.is_alive():
            slot.end()
            slot.start(self._context, self._threads)
        slot.number = order.number
        slot.send(order)

    def answer(self, number: int, is_given_up: bool) -> None:
        """Answer a trial's `Evaluated`."""
        next(slot for slot in self._slots if slot.number == number).send(is_given_up)

    def messages(self, timeout_s: float) -> list[tuple[int, Message]]:
        """What was told of which trial meanwhile; a trial that ended or died is no one's."""
        busy = [slot for slot in self._slots if slot.number is not None]
        ready = wait([slot.pipe for slot in busy if slot.pipe is not None], timeout_s)
        return [slot.receive() for slot in busy if slot.pipe in ready]

    def stop(self) -> None:
        """Have all finish their step and leave a checkpoint."""
        for slot in self._slots:
            if slot.number is not None and slot.process is not None:
                slot.process.terminate()


class _Slot:
    """Place of a process."""

    def __init__(self, place: int) -> None:
        self._place = place
        self.process: SpawnProcess | None = None
        self.pipe: Connection | None = None
        self.number: int | None = None
        """Of the trial that is trained here."""

    def start(self, context: multiprocessing.context.SpawnContext, threads: int) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve_orders,
            args=(theirs, threads, self._place),
            name=f"tune-{self._place}",
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def send(self, message: Order | bool) -> None:
        assert self.pipe is not None
        try:
            self.pipe.send(message)
        except OSError:
            return  # it died: reading tells

    def receive(self) -> tuple[int, Message]:
        assert self.pipe is not None and self.number is not None
        number = self.number
        try:
            message: Message = self.pipe.recv()
        except (EOFError, OSError):
            message = Died(self._how())
            self.end()
        if not isinstance(message, Evaluated):
            self.number = None
        return number, message

    def _how(self) -> str:
        assert self.process is not None
        self.process.join()
        code = self.process.exitcode or 0
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def end(self) -> None:
        if self.process is not None and self.pipe is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = self.pipe = None


def serve_orders(pipe: Connection, threads: int, place: int) -> None:
    """Train what is ordered, trial by trial; what a process does.

    Args:
        pipe: `Order`s and answers come, `Evaluated` and `Outcome` go.
        threads: To compute with.
        place: Among the processes; of several GPUs they take one after the other.
    """
    os.setsid()  # a terminal's Ctrl-C reaches the study, which tells what to do
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())

    def ask(evaluation: int, value: float) -> bool:
        pipe.send(Evaluated(evaluation, value))
        return bool(pipe.recv())

    while True:
        pipe.send(train_trial(pipe.recv(), ask))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
