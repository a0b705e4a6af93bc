"""Saving beside the training: a copy is taken at once, and written while the training goes on.

Invariants: at most one checkpoint is being written; what was saved is the state at the call of
`save`; old checkpoints go only after a new one is whole.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdlrm.checkpoint import store
from fastdlrm.checkpoint.planner import Live
from fastdlrm.checkpoint.store import Tensors
from fastdlrm.parallel.world import ALONE, World


class Saver:
    """Writes a run's checkpoints in a thread, one after the other.

    It holds a copy of this rank's own tensors: on the CPU while they are written; of a GPU's
    tensors for good, in page-locked memory. The ranks' threads talk by a group of their own.

    Args:
        root: Folder of the run's checkpoints, the same for all ranks.
        keep: How many checkpoints to keep, the best one apart.
        world: The ranks that save; all of them make a Saver, and wait for it before they part.
    """

    def __init__(self, root: Path, keep: int, world: World = ALONE) -> None:
        self._root = root
        self._keep = keep
        self._world = world.beside()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[Path] | None = None
        self._page_locked: dict[str, Tensor] = {}

    def save(
        self,
        step: int,
        tensors: Tensors,
        state: dict[str, Any],
        config: dict[str, Any],
        *,
        best: int | None = None,
    ) -> None:
        """Wait for the last checkpoint, copy the tensors and begin to write them.

        On a GPU the copy is queued behind the work that is queued: the caller does not wait for it.

        Args:
            step: Optimizer steps done; names the folder.
            tensors: As `store.save` takes them.
            state: JSON-able; not to be altered any more.
            config: The run's resolved config.
            best: Step of a checkpoint to keep in any case.

        Raises:
            CheckpointError: The last checkpoint could not be written.
        """
        self.wait()
        copies = self._copies(tensors)
        is_copied = None
        if torch.cuda.is_initialized():
            is_copied = torch.cuda.Event()
            is_copied.record()
        self._saving = self._thread.submit(
            self._write, is_copied, step, copies, state, config, best
        )

    def wait(self) -> Path | None:
        """Wait for the checkpoint that is being written.

        Returns:
            Its folder; None if none was.

        Raises:
            CheckpointError: It could not be written. It is raised once.
        """
        saving, self._saving = self._saving, None
        return None if saving is None else saving.result()

    def _write(
        self,
        is_copied: torch.cuda.Event | None,
        step: int,
        tensors: Tensors,
        state: dict[str, Any],
        config: dict[str, Any],
        best: int | None,
    ) -> Path:
        """What the thread does."""
        if is_copied is not None:
            is_copied.synchronize()
        folder = store.write(self._root, step, tensors, state, config, world=self._world)
        if self._world.is_first:
            store.prune(self._root, self._keep, best)
        return folder

    def _copies(self, tensors: Tensors) -> Tensors:
        """This rank's own tensors as they are now, or on a GPU will be after what is queued."""
        own = store.own_tensors(tensors, self._world)
        if any(_tensor(value).is_pinned() for named in own.values() for value in named.values()):
            torch.cuda.current_stream().synchronize()  # kernels write into page-locked tables
        return {
            group: {name: self._copy(f"{group}/{name}", value) for name, value in named.items()}
            for group, named in own.items()
        }

    def _copy(self, name: str, value: Live) -> Live:
        tensor = _tensor(value).detach()
        if tensor.device.type == "cpu":
            copy = tensor.clone(memory_format=torch.contiguous_format)
        else:
            copy = self._page_locked.get(name, tensor)
            if copy is tensor or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._page_locked[name] = copy
            copy.copy_(tensor, non_blocking=True)
        return copy if isinstance(value, Tensor) else replace(value, tensor=copy)


def _tensor(value: Live) -> Tensor:
    return value if isinstance(value, Tensor) else value.tensor
