"""Runs of weights that another program trained, and files of ours for other programs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from fastdlrm.checkpoint.foreign import ForeignWeights, foreign_state
from fastdlrm.checkpoint.naming import NamingName
from fastdlrm.checkpoint.parts import columns_of, part_names, parts_of
from fastdlrm.config import to_tree
from fastdlrm.contracts.manifest import replacing
from fastdlrm.contracts.schema import IdEncoding, Schema
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.write import new_folder
from fastdlrm.errors import CheckpointError, DataError
from fastdlrm.model.build import around_tables, build_tables, require_fit
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.step import TrainStep
from fastdlrm.train.trainer import Trainer

SAME_ROWS: tuple[IdEncoding, ...] = ("reference", "identity")
"""Encodings whose ids are the rows of the other program's tables: by the numbers that the reference
gives, or by none."""


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an import ends with."""

    run: str
    """The run's folder."""
    naming: NamingName
    """Whose names the file has."""
    model: ModelConfig
    """What the file says the model is."""
    overrides: tuple[str, ...]
    """What the config must be told by --set to be this model's, to train it further."""
    num_embeddings: int
    """Rows of all tables as the dataset has them."""
    num_tensors: int
    """Tables, weights and biases."""
    num_square_sums: int
    """Of how many of them Adagrad goes on from the file's sums of squared gradients; all else that
    optimizers keep starts afresh."""


def import_run(
    path: Path,
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    rows_are_ids: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
) -> ImportResult:
    """Make a run whose checkpoint at step 0 holds another program's weights.

    Adagrad goes on from the sums of squared gradients in the file, where both the file and the
    config are of it; all else that optimizers keep starts afresh. The file's numbers are mapped and
    copied table by table.

    Args:
        path: A file of dlrm_s_pytorch or of TorchRec's DLRM, made by torch.save.
        recipe: Of the run; what the file says of the model takes the place of its [model].
        dataset: Whose features the model predicts from, and whose ids are rows of its tables.
        out: The run's folder, to be made.
        rows_are_ids: The caller's word that id r of the dataset is row r of the file's tables,
            whatever the encoding.
        on_message: Called with each line worth telling.

    Raises:
        CheckpointError: The file is not safe, damaged, or of another model.
        ConfigError: The run cannot be made.
        DataError: The dataset numbers its values by itself, or `out` holds something.
    """
    weights = ForeignWeights.open(path)
    if not rows_are_ids:
        _require_same_rows(dataset)
    schema = dataset.schema
    model = weights.model_config(recipe.model, schema)
    require_fit(model, schema)
    naming = weights.naming.name
    weights.require_shapes(parts_of(_without_numbers(model, dataset), schema, naming))
    with new_folder(out) as folder:  # a run without its weights would be trained from others
        run = Run.create(folder, msgspec.structs.replace(recipe, model=model), dataset)
        trainer = Trainer(run, dataset, on_message=on_message)
        num_square_sums = trainer.start_from(lambda step: _fill(step, weights, model, schema))
    return ImportResult(
        run=str(out),
        naming=naming,
        model=model,
        overrides=_overrides(recipe.model, model),
        num_tensors=len(weights.tensors),
        num_square_sums=num_square_sums,
        num_embeddings=sum(
            table.num_embeddings for table in dataset.manifest.encoding.tables.values()
        ),
    )


def export_file(run: Run, checkpoint: str, naming: NamingName, path: Path) -> dict[str, Tensor]:
    """Write a run's weights as another program loads them.

    reference: a file for dlrm_s_pytorch's --load-model; what it asks for besides the weights says
    that no step was taken. torchrec: a state dict for `load_state_dict`.

    Args:
        run: The run.
        checkpoint: "best", "last" or a step.
        naming: Whose names.
        path: The file, written atomically.

    Returns:
        The state dict.

    Raises:
        CheckpointError: There is no such checkpoint, or the other program has no such model.
    """
    config, schema = run.recipe.model, run.manifest.schema
    state = foreign_state(run.load_model(checkpoint), config, schema, naming)
    content: Any = state
    if naming == "reference":
        content = _reference_file(state, run.recipe.train.dense_optimizer.learning_rate)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; name the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(content, file)
    return state


def _fill(step: TrainStep, weights: ForeignWeights, config: ModelConfig, schema: Schema) -> int:
    """Lay a file's numbers into model and optimizers; of how many parts Adagrad has its sums."""
    naming = weights.naming.name
    columns = columns_of(config, schema, naming)
    weights.copy_into(parts_of(step.model, schema, naming), columns)
    kept: dict[str, Any] = {
        **step.sparse_optimizer.state_tensors(),
        **step.dense_optimizer.state_tensors(),
    }
    names = part_names(step.model, schema, naming)
    live = {part: kept.get(f"{name}.square_sum") for part, name in names.items()}
    return weights.copy_square_sums({p: x for p, x in live.items() if x is not None}, columns)


def _reference_file(state: Mapping[str, Tensor], learning_rate: float) -> dict[str, Any]:
    """All keys that dlrm_s_pytorch's --load-model reads, in any of its versions."""
    counts = ("epoch", "iter", "nepochs", "nbatches", "nbatches_test", "total_accu")
    metrics = ("train_acc", "train_loss", "total_loss", "test_acc", "test_loss", "test_auc")
    optimizer = torch.optim.SGD(state.values(), lr=learning_rate)
    return {
        **dict.fromkeys(counts, 0),
        **dict.fromkeys(metrics, 0.0),
        "state_dict": dict(state),
        "opt_state_dict": optimizer.state_dict(),
    }


def _without_numbers(config: ModelConfig, dataset: Dataset) -> DLRM:
    """The model on no device: names and shapes alone."""
    schema = dataset.schema
    tables = build_tables(config, schema, dataset.manifest.encoding, device="meta")
    return around_tables(config, schema, tables, torch.Generator(), "meta")


def _require_same_rows(dataset: Dataset) -> None:
    """Check that the dataset's ids can be rows of another program's tables."""
    for table in dataset.schema.tables:
        if table.encoding not in SAME_ROWS:
            raise DataError(
                f"{dataset.folder}: table {table.name!r} has encoding {table.encoding!r}, whose "
                f"rows are no other program's; prepare with {' or '.join(SAME_ROWS)}, or say "
                "--rows-are-ids where row r of the file is id r of this dataset all the same"
            )


def _overrides(wanted: ModelConfig, found: ModelConfig) -> tuple[str, ...]:
    """Keys that differ, as the command line takes them."""
    old, new = to_tree(wanted), to_tree(found)
    return tuple(
        f"model.{key}={msgspec.json.encode(value).decode()}"
        for key, value in new.items()
        if value != old[key]
    )
