"""Checkpoints of a run: one folder a step, safetensors and a manifest, written atomically.

A checkpoint is a set of named groups of named tensors plus a small JSON state. It is written to a
hidden folder, synced and renamed, so a killed process leaves either all of it or nothing. Nothing
is unpickled on load.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdlrm import __version__
from fastdlrm.contracts.manifest import (
    VERSIONS,
    CheckpointManifest,
    entry_of,
    read_manifest,
    source_commit,
    sync_folder,
    verify_files,
    write_manifest,
)
from fastdlrm.errors import CheckpointError

Tensors = Mapping[str, Mapping[str, Tensor]]


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
    root: Path, step: int, tensors: Tensors, state: dict[str, Any], config: dict[str, Any]
) -> Path:
    """Write a checkpoint.

    Args:
        root: Folder of the run's checkpoints.
        step: Optimizer steps done; names the folder.
        tensors: By group, then by name; a group is a file.
        state: JSON-able.
        config: The run's resolved config.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: It cannot be written.
    """
    final = folder_of(root, step)
    partial = root / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = {}
        for group, named in tensors.items():
            path = partial / f"{group}.safetensors"
            save_file({k: v.detach().cpu().contiguous() for k, v in named.items()}, path)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            files[path.name] = entry_of(path)
        write_manifest(
            partial,
            CheckpointManifest(
                kind="checkpoint",
                version=VERSIONS["checkpoint"],
                created_by=__version__,
                commit=source_commit(),
                config=config,
                files=files,
                step=step,
                state=state,
            ),
        )
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_folder(root)
    except OSError as problem:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written: {problem.strerror or problem}; free space or make the "
            "folder writable, then train again with --resume"
        ) from problem
    return final


def load(folder: Path, groups: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint into CPU memory.

    Args:
        folder: One checkpoint.
        groups: Groups to read; None reads all.

    Raises:
        CheckpointError: It is missing, damaged, or lacks a group.
    """
    manifest = read_manifest(folder, CheckpointManifest, CheckpointError)
    verify_files(folder, manifest, CheckpointError)
    tensors: dict[str, dict[str, Tensor]] = {}
    stored = [name.removesuffix(".safetensors") for name in manifest.files]
    for group in stored:
        if groups is None or group in groups:
            try:
                tensors[group] = load_file(folder / f"{group}.safetensors")
            except SafetensorError as problem:
                raise CheckpointError(
                    f"{folder}/{group}.safetensors: damaged: {problem}; use another checkpoint"
                ) from problem
    if missing := sorted(set(groups or ()) - set(tensors)):
        raise CheckpointError(
            f"{folder}: no group {missing[0]!r}; it holds {', '.join(sorted(stored))}"
        )
    return Checkpoint(manifest.step, tensors, manifest.state)


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


def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], where: str) -> None:
    """Copy loaded tensors over existing ones of the same names and shapes.

    Raises:
        CheckpointError: Names or shapes differ: the checkpoint is of another model.
    """
    for name in sorted(set(target) ^ set(source)):
        side = "the model" if name in target else "the checkpoint"
        raise CheckpointError(
            f"{where}: tensor {name!r} is only in {side}; load it into the model that made it"
        )
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise CheckpointError(
                f"{where}: tensor {name!r} has shape {tuple(source[name].shape)}, the model wants "
                f"{tuple(tensor.shape)}; load it into the model that made it"
            )
        with torch.no_grad():
            tensor.copy_(source[name])
