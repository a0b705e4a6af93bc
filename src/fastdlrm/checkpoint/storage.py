"""A checkpoint's folder as storage of torch's distributed checkpoints.

A group is a file `GROUP.safetensors`, or where several ranks save, a file
`GROUP-RANK-of-SIZE.safetensors` of each that has a part of it, ranks counted from 1. The files are
written to a hidden folder and synced; after all ranks are done the first writes the manifest and
renames the folder. All ranks see the same folder.

Not torch's own HuggingFaceStorageWriter: it copies all that a rank writes into one object of bytes,
and knows no groups; its reader maps whole files.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import Size
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from fastdlrm.checkpoint.tensor_file import (
    StoredTensor,
    copy_from,
    stored_tensors,
    write_tensors,
)
from fastdlrm.contracts.manifest import (
    CheckpointManifest,
    read_manifest,
    sync_folder,
    verify_files,
    write_manifest,
)
from fastdlrm.errors import CheckpointError
from fastdlrm.parallel.world import World

FILE_NAME = re.compile(r"(?P<group>.+?)(-\d{5}-of-\d{5})?\.safetensors")


class CheckpointWriter(StorageWriter):
    """Writes one checkpoint.

    Args:
        folder: To be there when all is written, and not before.
        manifest: Without files.
        groups: All of them: one without tensors is written, too.
        world: The ranks that save.
    """

    def __init__(
        self, folder: Path, manifest: CheckpointManifest, groups: Sequence[str], world: World
    ) -> None:
        super().__init__()
        self.partial = folder.with_name(f".{folder.name}.partial")
        self._folder = folder
        self._manifest = manifest
        self._groups = groups
        self._world = world

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer is for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the world says it all."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the hidden folder, before any rank writes."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write this rank's files; a result is a file with its entry in the manifest."""
        items: dict[str, list[WriteItem]] = {}
        for group in self._groups:
            if self._world.is_first:
                items[group] = []
        for item in plan.items:
            items.setdefault(item.index.fqn.partition("/")[0], []).append(item)
        done: Future[list[WriteResult]] = Future()
        done.set_result([self._write(group, items[group], planner) for group in items])
        return done

    def _write(self, group: str, items: list[WriteItem], planner: SavePlanner) -> WriteResult:
        tensors: dict[str, Any] = {}
        offsets: dict[str, Any] = {}
        for item in items:
            name = item.index.fqn.partition("/")[2]
            tensors[name], offsets[name] = planner.resolve_data(item), item.index.offset
        path = self.partial / _file_name(group, self._world)
        entry = write_tensors(path, tensors, offsets)
        return WriteResult(MetadataIndex(path.name), entry.size_bytes, entry)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest and give the folder its name, on the first rank."""
        files = {r.index.fqn: r.storage_data for of_rank in results for r in of_rank}
        write_manifest(self.partial, msgspec.structs.replace(self._manifest, files=files))
        shutil.rmtree(self._folder, ignore_errors=True)
        self.partial.rename(self._folder)
        sync_folder(self._folder.parent)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never asked: a writer knows its folder."""
        return True


class CheckpointReader(StorageReader):
    """Reads groups of one checkpoint.

    Args:
        folder: The checkpoint.
        groups: What to read.
    """

    def __init__(self, folder: Path, groups: Sequence[str]) -> None:
        super().__init__()
        self._folder = folder
        self._groups = groups
        self._stored: dict[MetadataIndex, StoredTensor] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a reader is for one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Empty until `set_up_storage_reader`: what this method raises torch would swallow."""
        return Metadata({})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Read what the files hold.

        Raises:
            CheckpointError: They are missing or damaged, or there is no such group.
        """
        manifest = open_manifest(self._folder, self._groups)
        for group, names in stored_groups(self._folder, manifest, self._groups).items():
            for name, pieces in names.items():
                full_name = f"{group}/{name}"
                metadata.state_dict_metadata[full_name] = TensorStorageMetadata(
                    TensorProperties(dtype=pieces[0].dtype),
                    Size(full_shape(pieces)),
                    [ChunkStorageMetadata(Size(p.offsets), Size(p.shape)) for p in pieces],
                )
                for piece in pieces:
                    self._stored[MetadataIndex(full_name, Size(piece.offsets))] = piece

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        """Fill this rank's tensors."""
        for item in plan.items:
            stored = self._stored[item.storage_index]
            copy_from(stored, item.storage_offsets, planner.resolve_tensor(item))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never asked: a reader knows its folder."""
        return True


def open_manifest(folder: Path, groups: Sequence[str]) -> CheckpointManifest:
    """Read a checkpoint's manifest and check its files' sizes.

    Args:
        folder: The checkpoint.
        groups: What it must hold.

    Raises:
        CheckpointError: It is missing, a file is missing or cut, or it lacks a group.
    """
    manifest = read_manifest(folder, CheckpointManifest, CheckpointError)
    verify_files(folder, manifest, CheckpointError)
    stored = groups_of(manifest)
    if missing := sorted(set(groups) - set(stored)):
        raise CheckpointError(
            f"{folder}: no group {missing[0]!r}; it holds {', '.join(sorted(stored))}"
        )
    return manifest


def groups_of(manifest: CheckpointManifest) -> list[str]:
    """Names of a checkpoint's groups."""
    return list(dict.fromkeys(_group(name) for name in manifest.files))


def stored_groups(
    folder: Path, manifest: CheckpointManifest, groups: Sequence[str]
) -> dict[str, dict[str, list[StoredTensor]]]:
    """The pieces of each tensor of some groups, by group, then by name.

    Raises:
        CheckpointError: A file is damaged.
    """
    found: dict[str, dict[str, list[StoredTensor]]] = {group: {} for group in groups}
    for file in manifest.files:
        if (group := _group(file)) in found:
            for name, piece in stored_tensors(folder / file).items():
                found[group].setdefault(name, []).append(piece)
    return found


def full_shape(pieces: Sequence[StoredTensor]) -> tuple[int, ...]:
    """Shape of what pieces are of."""
    ends = [[start + size for start, size in zip(p.offsets, p.shape, strict=True)] for p in pieces]
    return tuple(map(max, zip(*ends, strict=True)))


def _file_name(group: str, world: World) -> str:
    part = f"-{world.rank + 1:05d}-of-{world.size:05d}" if world.size > 1 else ""
    return f"{group}{part}.safetensors"


def _group(file: str) -> str:
    name = FILE_NAME.fullmatch(file)
    return name["group"] if name else file
