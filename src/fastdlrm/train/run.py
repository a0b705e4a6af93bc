"""A run's folder: what made it, its checkpoints, its records.

RUN/manifest.json            kind run: resolved config, schema, encoding
RUN/vocab/TABLE.arrow        the dataset's vocabularies, so that raw rows can be encoded again
RUN/checkpoints/step-*/      see `fastdlrm.checkpoint.store`
RUN/records.jsonl            see `fastdlrm.contracts.record`
RUN/matmul.json              see `fastdlrm.train.matmul`
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from fastdlrm import __version__
from fastdlrm.checkpoint import store
from fastdlrm.config import from_tree, to_tree
from fastdlrm.contracts.manifest import (
    MANIFEST,
    VERSIONS,
    RunManifest,
    entry_of,
    read_manifest,
    sha256_of,
    source_commit,
    verify_files,
    write_manifest,
)
from fastdlrm.data.config import DataConfig
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import CheckpointError, ConfigError, DataError
from fastdlrm.model.build import build_dlrm, build_tables, require_fit
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.lookup import Tables
from fastdlrm.train.device import device_name, resolve_device
from fastdlrm.train.dims import with_table_dims
from fastdlrm.train.memory import memory_plan, require_memory
from fastdlrm.train.recipe import Recipe

logger = logging.getLogger(__name__)

TABLE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MAY_CHANGE = {
    "num_epochs",
    "max_steps",
    "early_stop_patience",
    "target_metric_value",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "device",
}
"""Keys of [train] that a resumed run may set anew: they do not change a step's result."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and what it says.

    Attributes:
        folder: Where it lies.
        manifest: Schema and encoding it was trained on.
        recipe: The resolved config; its [data] is that of the dataset, whatever the config said.
    """

    folder: Path
    manifest: RunManifest
    recipe: Recipe

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, dataset: Dataset) -> "Run":
        """Make a run's folder; nothing is left where training cannot start.

        Raises:
            ConfigError: The folder is a file, or holds something already; the config does not fit
                the dataset or this machine.
        """
        recipe = with_data_of(dataset, recipe)
        require_fit(recipe.model, dataset.schema)
        device = resolve_device(recipe.train.device)
        encoding = dataset.manifest.encoding
        require_memory(memory_plan(recipe, dataset.schema, encoding, device), device)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {folder}: not a folder; name one to be made")
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"--out {folder}: not empty; pass --resume to continue the run in it, or name "
                "another folder"
            )
        vocabularies = [t.vocabulary for t in encoding.tables.values()]
        files = {}
        for name in filter(None, vocabularies):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.folder / name, folder / name)
            files[name] = entry_of(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = RunManifest(
            kind="run",
            version=VERSIONS["run"],
            created_by=__version__,
            commit=source_commit(),
            config=to_tree(recipe),
            files=files,
            schema=dataset.schema,
            encoding=encoding,
            dataset_sha256=sha256_of(dataset.manifest_path),
            machine=device_name(device),
        )
        write_manifest(folder, manifest)
        return cls(folder, manifest, recipe)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a run.

        Raises:
            CheckpointError: No run there, or its files are damaged.
        """
        manifest = read_manifest(folder, RunManifest, CheckpointError)
        verify_files(folder, manifest, CheckpointError)
        return cls(folder, manifest, from_tree(manifest.config, Recipe, str(folder / MANIFEST)))

    @classmethod
    def resume(cls, folder: Path, recipe: Recipe, dataset: Dataset) -> "Run":
        """Open a run to train it further, or make it where there is none yet.

        Raises:
            ConfigError: The config differs from the run's in a key that matters.
            DataError: The dataset is another one.
        """
        if not (folder / MANIFEST).is_file():
            # Killed before its manifest was written: nothing of it is of use.
            shutil.rmtree(folder / "vocab", ignore_errors=True)
            return cls.create(folder, recipe, dataset)
        run = cls.open(folder)
        recipe = with_data_of(dataset, recipe)
        if sha256_of(dataset.manifest_path) != run.manifest.dataset_sha256:
            raise DataError(
                f"--resume {folder}: {dataset.folder} is not the dataset of this run; name the one "
                "it was started with"
            )
        if differing := _differences(to_tree(run.recipe), to_tree(recipe)):
            raise ConfigError(
                f"--resume {folder}: {differing[0]} differs from the run's; resume with the run's "
                f"config (only {', '.join(sorted(MAY_CHANGE))} of [train] may change)"
            )
        return cls(folder, run.manifest, recipe)

    def require_same_encoding(self, dataset: Dataset) -> None:
        """Check that a dataset's ids mean what this run's model learned.

        Raises:
            DataError: Schema or encoding differ.
        """
        same = (
            dataset.schema == self.manifest.schema
            and dataset.manifest.encoding == self.manifest.encoding
            and all(
                dataset.manifest.files[name].sha256 == entry.sha256
                for name, entry in self.manifest.files.items()
            )
        )
        if not same:
            raise DataError(
                f"{dataset.folder}: encoded differently from the dataset that {self.folder} was "
                "trained on; evaluate on that one, or use predict on raw files"
            )

    def checkpoint_folder(self, name: str) -> Path:
        """The folder of checkpoint "best", "last" or a step.

        Raises:
            CheckpointError: There is no such checkpoint.
        """
        steps = store.steps(self.checkpoints)
        if not steps:
            raise CheckpointError(f"{self.folder}: no checkpoint yet; train it first")
        if name == "last":
            return store.folder_of(self.checkpoints, steps[-1])
        if name == "best":
            last = store.load(store.folder_of(self.checkpoints, steps[-1]), groups=())
            best = last.state["best_step"]
            return store.folder_of(self.checkpoints, steps[-1] if best is None else best)
        if name.isdigit() and int(name) in steps:
            return store.folder_of(self.checkpoints, int(name))
        raise CheckpointError(
            f"{self.folder}: no checkpoint {name!r}; best, last or one of {steps} is allowed"
        )

    def build_model(self, device: torch.device | str = "cpu", tables: Tables | None = None) -> DLRM:
        """The model as it is before the first step.

        Args:
            device: Where it computes.
            tables: To be drawn, where they lie on several ranks; None: all in this process.
        """
        recipe, manifest = self.recipe, self.manifest
        is_gpu = torch.device(device).type == "cuda"
        if tables is None:
            tables = build_tables(
                recipe.model,
                manifest.schema,
                manifest.encoding,
                table_dtype=TABLE_DTYPES[recipe.train.table_dtype],
                device=device,
                on_host=is_gpu and recipe.train.table_placement == "host",
            )
        return build_dlrm(
            recipe.model,
            manifest.schema,
            manifest.encoding,
            recipe.seed,
            device=device,
            tables=tables,
        )

    def load_model(self, checkpoint: str = "best") -> DLRM:
        """The model with the weights of a checkpoint, on the CPU, in evaluation mode.

        Learned pooling weights are multiplied into their rows.

        Raises:
            CheckpointError: There is no such checkpoint, or it is damaged.
        """
        folder = self.checkpoint_folder(checkpoint)
        model = self.build_model()
        store.load_into(folder, {"model": model.state_tensors()})
        for module in model.modules():
            if isinstance(module, EmbeddingTables):
                module.fold_weights()
        return model.eval()


def with_data_of(dataset: Dataset, recipe: Recipe) -> Recipe:
    """The config with the [data] that the dataset was prepared with, which says how raw files look,
    and with the widths of its tables.

    Args:
        dataset: What is trained on.
        recipe: A warning tells where its [data] is another.
    """
    data = from_tree(dataset.manifest.config["data"], DataConfig, str(dataset.manifest_path))
    if data != recipe.data:
        logger.warning(
            "[data] of the config is not what %s was prepared with; the dataset's holds",
            dataset.folder,
        )
    recipe = msgspec.structs.replace(recipe, data=data)
    return with_table_dims(recipe, dataset.schema, dataset.manifest.encoding)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ, those of MAY_CHANGE left out."""
    differing = []
    for section in sorted(set(old) | set(new)):
        a, b = old.get(section), new.get(section)
        if isinstance(a, dict) and isinstance(b, dict):
            allowed = MAY_CHANGE if section == "train" else set()
            keys = sorted((set(a) | set(b)) - allowed)
            differing += [f"{section}.{key}" for key in keys if a.get(key) != b.get(key)]
        elif a != b:
            differing.append(section)
    return differing
