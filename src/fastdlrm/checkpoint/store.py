"""Checkpoints of a run: one folder a step, safetensors and a manifest, written atomically.

A checkpoint is a set of named groups of named tensors plus a small JSON state. It is written to a
hidden folder, synced and renamed, so a killed process leaves either all of it or nothing. Nothing
is unpickled on load. Any number of ranks save one, each its own pieces, and any number load it,
whatever pieces they want: the tensors' names and shapes are all that must agree.

Memory: loading takes READ_BYTES besides the tensors loaded into. Saving takes a copy of a rank's
pieces that are not contiguous on the CPU; `Saver` takes a copy of all of them.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_pieces
from torch.distributed.checkpoint.state_dict_saver import save as save_pieces

from fastdlrm import __version__
from fastdlrm.checkpoint.planner import Live, ShardLoadPlanner, ShardSavePlanner
from fastdlrm.checkpoint.storage import (
    CheckpointReader,
    CheckpointWriter,
    full_shape,
    groups_of,
    open_manifest,
    stored_groups,
)
from fastdlrm.contracts.manifest import (
    VERSIONS,
    CheckpointManifest,
    source_commit,
)
from fastdlrm.errors import CheckpointError
from fastdlrm.parallel.tensor_shard import TensorShard
from fastdlrm.parallel.world import ALONE, World

Tensors = Mapping[str, Mapping[str, Live]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        step: Optimizer steps done.
        tensors: By group, then by name.
        state: What the loop saved beside the tensors.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(
    root: Path,
    step: int,
    tensors: Tensors,
    state: dict[str, Any],
    config: dict[str, Any],
    *,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint; all ranks call it, and it returns when all have written.

    Args:
        root: Folder of the run's checkpoints, the same for all ranks.
        step: Optimizer steps done; names the folder.
        tensors: By group, then by name. Every rank gives all groups, and of the tensors it holds
            pieces of a `TensorShard` each. Plain tensors are the first rank's; others' are ignored.
        state: JSON-able; the first rank's counts.
        config: The run's resolved config.
        world: The ranks that save.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: It cannot be written, or a rank is gone.
    """
    if torch.cuda.is_initialized():  # kernels may still write into page-locked tables
        torch.cuda.current_stream().synchronize()
    return write(root, step, tensors, state, config, world=world)


def write(
    root: Path,
    step: int,
    tensors: Tensors,
    state: dict[str, Any],
    config: dict[str, Any],
    *,
    world: World,
) -> Path:
    """`save` of tensors that nothing writes to any more."""
    final = folder_of(root, step)
    manifest = CheckpointManifest(
        kind="checkpoint",
        version=VERSIONS["checkpoint"],
        created_by=__version__,
        commit=source_commit() if world.is_first else "",
        config=config,
        files={},
        step=step,
        state=state,
    )
    writer = CheckpointWriter(final, manifest, tuple(tensors), world)
    remedy = "free space or make the folder writable, then train again with --resume"
    try:
        with _errors(f"{final}: cannot be written", remedy, world):
            save_pieces(
                _flat(own_tensors(tensors, world)),
                storage_writer=writer,
                planner=ShardSavePlanner(),
                process_group=world.control,
                no_dist=world.size == 1,
            )
    finally:
        if world.is_first:
            shutil.rmtree(writer.partial, ignore_errors=True)
    return final


def load(folder: Path, groups: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint into CPU memory, each tensor whole; a rank may call it by itself.

    Args:
        folder: One checkpoint.
        groups: Groups to read; None reads all.

    Raises:
        CheckpointError: It is missing, damaged, or lacks a group.
    """
    manifest = open_manifest(folder, groups or ())
    wanted = groups_of(manifest) if groups is None else groups
    tensors = {
        group: {
            name: torch.empty(full_shape(pieces), dtype=pieces[0].dtype)
            for name, pieces in names.items()
        }
        for group, names in stored_groups(folder, manifest, wanted).items()
    }
    load_into(folder, tensors)
    return Checkpoint(manifest.step, tensors, manifest.state)


def load_into(folder: Path, tensors: Tensors, *, world: World = ALONE) -> None:
    """Read groups of a checkpoint into live tensors, in place; all ranks call it.

    Args:
        folder: One checkpoint, of any number of ranks.
        tensors: By group, then by name. Every rank gives the same groups, and of the tensors it
            holds pieces of a `TensorShard` each.
        world: The ranks that load.

    Raises:
        CheckpointError: It is missing, damaged, lacks a group, or is of another model: names or
            shapes differ. Every rank raises the same.
    """
    with _errors(f"{folder}: cannot be read", "use another checkpoint", world):
        load_pieces(
            _flat(tensors),
            storage_reader=CheckpointReader(folder, tuple(tensors)),
            planner=ShardLoadPlanner(str(folder)),
            process_group=world.control,
            no_dist=world.size == 1,
        )


def folder_of(root: Path, step: int) -> Path:
    """The folder of the checkpoint at a step."""
    return root / f"step-{step:09d}"


def steps(root: Path) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    return sorted(
        int(p.parent.name.removeprefix("step-")) for p in root.glob("step-*/manifest.json")
    )


def prune(root: Path, keep: int, best: int | None) -> None:
    """Delete all but the last `keep` checkpoints and the best one, and what killed runs left."""
    kept = {*steps(root)[-keep:], best}
    for step in steps(root):
        if step not in kept:
            # Renamed first: a folder that is being deleted must not look like a checkpoint.
            doomed = root / f".{folder_of(root, step).name}.partial"
            folder_of(root, step).rename(doomed)
    for leftover in root.glob(".step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def own_tensors(tensors: Tensors, world: World) -> Tensors:
    """What this rank writes: its pieces, copies left out, and on the first rank plain tensors."""

    def is_own(value: Live) -> bool:
        return not value.is_copy if isinstance(value, TensorShard) else world.is_first

    return {
        group: {name: value for name, value in named.items() if is_own(value)}
        for group, named in tensors.items()
    }


def _flat(tensors: Tensors) -> dict[str, Any]:
    """Live tensors by GROUP/NAME."""
    return {
        f"{group}/{name}": value
        for group, named in tensors.items()
        for name, value in named.items()
    }


@contextmanager
def _errors(where: str, remedy: str, world: World) -> Iterator[None]:
    """Say as a CheckpointError what went wrong on any rank.

    torch's warning that one process works alone is not for the user: it is what he wants.
    """
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
    try:
        yield
    except CheckpointException as problem:
        rank, (cause, _) = min(problem.failures.items())
        if isinstance(cause, (OSError, SafetensorError)):
            said = getattr(cause, "strerror", None) or cause
            of_rank = f"rank {rank}: " if world.size > 1 else ""
            cause = CheckpointError(f"{where}: {of_rank}{said}; {remedy}")
        if isinstance(cause, CheckpointError):
            cause = world.of_rank(rank, cause)
        raise cause from problem
    except RuntimeError as problem:  # of the ranks' talk
        raise CheckpointError(f"{where}: a rank is gone: {problem}; {remedy}") from problem
