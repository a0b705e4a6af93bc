"""A model in every precision that it can be exported in, to compare them."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import get_args

import msgspec
import torch

from fastdlrm.config import from_tree
from fastdlrm.contracts.exported import ExportedManifest, MlpDtype, TableDtype
from fastdlrm.errors import ExportError
from fastdlrm.export.model import MLP, predictor_of, with_weights
from fastdlrm.export.tables import open_tables, write_tables
from fastdlrm.export.verify import Score
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.layout import layout_of

logger = logging.getLogger(__name__)


def other_precisions(
    folder: Path,
    model: DLRM,
    manifest: ExportedManifest,
    ranges: tuple[tuple[float, float], ...],
    measured: Collection[tuple[str, str]],
) -> Iterator[tuple[TableDtype, MlpDtype, Score]]:
    """The model in each precision, one after the other; a warning says which cannot be had.

    Args:
        folder: Holds the MLPs; files of tables are written beside them, and taken away.
        model: The float32 model.
        manifest: Of the export.
        ranges: Of what int8 MLPs round.
        measured: Precisions to leave out.

    Yields:
        Type of the tables, type of the MLPs, and what scores; it is of use until the next one.
    """
    config = from_tree(manifest.config["model"], ModelConfig, str(folder))
    schema = manifest.schema
    layout = layout_of(config, schema, manifest.encoding)
    for tables in get_args(TableDtype):
        path = folder / f"compared-{tables}.bin"
        try:
            write_tables(path, model.tables.state_tensors(), tables)
            stored = open_tables(path, config, layout, tables)
        except ExportError as problem:
            logger.warning("not compared: %s", problem)
            continue
        finally:
            path.unlink(missing_ok=True)  # what is mapped stays
        lean = with_weights(folder / MLP, config, schema, layout.wrapped(stored))
        for mlp in get_args(MlpDtype):
            variant = msgspec.structs.replace(manifest, mlp_dtype=mlp, activation_ranges=ranges)
            if (tables, mlp) not in measured and (score := _score(lean, variant)) is not None:
                yield tables, mlp, score


def _score(model: DLRM, manifest: ExportedManifest) -> Score | None:
    try:
        predictor = predictor_of(model, manifest, torch.device("cpu"))
    except ExportError as problem:
        logger.warning("not compared: %s", problem)
        return None
    return lambda batch: predictor(batch.dense, batch.sparse)
