"""A second queue of work on a GPU, for what nothing waits for until later.

On the CPU the work runs at once, in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """Runs work beside the current stream.

    Args:
        device: Of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._held: list[Tensor] = []
        self._is_busy = False

    @contextmanager
    def __call__(self, *held: Tensor) -> Iterator[None]:
        """Queue the block's work after all that the current stream was asked for so far.

        Args:
            held: Tensors of the current stream that the work reads: their memory is not used again
                before `join`.
        """
        if self._stream is None:
            yield
            return
        self._held += held
        self._is_busy = True
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let the current stream wait for the work, if there is any."""
        if self._stream is not None and self._is_busy:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._held.clear()
            self._is_busy = False
