"""An exported model as one ONNX file, its tables inside, for whatever runs ONNX.

Its inputs are those of an encoded request (`fastdlrm.contracts.signature`), its output is the logit
before calibration; all numbers are float32. An id outside its table is an error of the runtime's.
Invariant: rows of bags are added one after the other, as in the other lookups, not by differences
of running sums, which would lose what a long batch's sum has outgrown.

Shapes: B batch, N dense features, F sparse features, D embedding dim, d columns of a stack, L ids
in the batch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdlrm.batch import Batch
from fastdlrm.contracts.exported import ExportedManifest, OnnxModel, TableDtype
from fastdlrm.contracts.schema import Schema
from fastdlrm.contracts.signature import DENSE, IDS, LENGTHS, WEIGHTS
from fastdlrm.errors import ExportError
from fastdlrm.export.model import TABLES
from fastdlrm.export.programs import OUTPUT, DenseHead, onnx_session, write_onnx
from fastdlrm.export.tables import StoredStack, StoredTables, open_tables, plain_rows
from fastdlrm.model.compression_config import CompressionConfig
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.layout import layout_of
from fastdlrm.model.mixed_tables import MixedTables
from fastdlrm.model.pooling import by_feature

FILE = "model.onnx"
MAX_TABLE_BYTES = 2 * 10**9
"""Of the tables in float32: an ONNX file is a protobuf message, which ends at 2 GiB."""
TOLERANCE: dict[TableDtype, float] = {"fp32": 1e-4, "bf16": 0.1, "int8": 1e-4, "int4": 1e-4}
"""Of a golden row's logit: rounding. Bags in bfloat16 round the weights of their ids too."""


def require_plain(compression: CompressionConfig) -> None:
    """Check that tables are looked up by the ids that a batch has.

    Raises:
        ExportError: They are compressed.
    """
    if compression != CompressionConfig():
        raise ExportError(
            f"{FILE}: compressed tables cannot be written into it; export without --onnx-model "
            "(--program onnx writes the part after the lookup), or train without model.compression"
        )


def require_small(num_bytes: int) -> None:
    """Check that tables fit into one ONNX file.

    Args:
        num_bytes: Of all rows in float32.

    Raises:
        ExportError: They do not.
    """
    if num_bytes > MAX_TABLE_BYTES:
        raise ExportError(
            f"{FILE}: the tables take {num_bytes / 1e9:.2f} GB in float32, one ONNX file holds "
            f"{MAX_TABLE_BYTES / 1e9:g} GB; export without --onnx-model (--program onnx writes the "
            "part after the lookup), or train with smaller data.sparse.max_rows"
        )


def require_close(difference: float, dtype: TableDtype) -> None:
    """Check what the ONNX file makes of the golden rows.

    Args:
        difference: Largest of a logit, from the exported model.
        dtype: Of the exported model's tables.

    Raises:
        ExportError: It is more than rounding, or no number.
    """
    if not difference <= TOLERANCE[dtype]:
        raise ExportError(
            f"{FILE}: a golden row's logit differs by {difference:g} from the exported model's, "
            f"{TOLERANCE[dtype]:g} is allowed; export without --onnx-model, and report this"
        )


def onnx_inputs(schema: Schema, batch: Batch) -> dict[str, NDArray[np.generic]]:
    """An encoded batch as the file's inputs: `session.run(None, onnx_inputs(...))` scores it.

    Args:
        schema: The model's.
        batch: As `ExportedModel.encode` gives it.

    Returns:
        `dense` (B, N) float32; `ids` (B, F) int64, or, where a feature is a bag, `ids` (L,)
        feature-major with `lengths` (F, B) int64 and, where ids carry weights, `weights` (L,)
        float32. What the model has none of is left out.
    """
    return {name: value.numpy() for name, value in _inputs(schema, batch).items()}


def build_onnx_model(
    folder: Path,
    model: DLRM,
    config: ModelConfig,
    manifest: ExportedManifest,
    batch: Batch,
    logits: NDArray[np.float32],
) -> OnnxModel:
    """Write the file, run it, and compare it with the exported model.

    Args:
        folder: The exported model, whose tables it takes as they are stored.
        model: Has the MLPs, in evaluation mode, on the CPU.
        config: Its shape.
        manifest: The exported model's.
        batch: The golden rows.
        logits: The exported model's of them, shape (B,).

    Raises:
        ExportError: What it takes is not installed, or the logits differ by more than rounding.
    """
    schema, dtype = manifest.schema, manifest.table_dtype
    layout = layout_of(config, schema, manifest.encoding)
    tables = open_tables(folder / TABLES, config, layout, dtype)
    takes_mean = [rule == "mean" for rule in by_feature(layout.pooling, layout.feature_tables)]
    lookup = _Lookup(tables, layout.feature_tables, takes_mean, dtype)
    whole = _Whole(lookup, DenseHead(model)).eval()
    inputs = _inputs(schema, batch)
    write_onnx(folder / FILE, _traced(whole, inputs), list(inputs))
    (found,) = onnx_session(folder / FILE).run([OUTPUT], onnx_inputs(schema, batch))
    difference = float(np.abs(found - logits).max())
    require_close(difference, dtype)
    return OnnxModel(file=FILE, inputs=tuple(inputs), max_logit_difference=difference)


class _Rows(nn.Module):
    """The rows of one stack, d numbers each, for ids of all features.

    Args:
        stack: As it is stored.
        features: Those that are looked up in it.
        used: The table of each of all F features.
        dtype: Of the rows.
    """

    stack: Tensor
    features: Tensor
    is_here: Tensor
    starts: Tensor
    sizes: Tensor

    def __init__(
        self, stack: StoredStack, features: Tensor, used: Sequence[str], dtype: TableDtype
    ) -> None:
        super().__init__()
        starts = torch.zeros(len(used), dtype=torch.int64)
        starts[features] = stack.feature_starts.long()
        sizes = [stack.num_embeddings.get(table, 0) for table in used]
        here = [table in stack.num_embeddings for table in used]
        self.has_all = all(here)
        self.register_buffer("stack", plain_rows(stack.weight.detach(), dtype))
        self.register_buffer("features", features)
        self.register_buffer("is_here", torch.tensor(here, dtype=torch.bool))
        self.register_buffer("starts", starts)
        self.register_buffer("sizes", torch.tensor(sizes, dtype=torch.int64))

    def of_own(self, ids: Tensor) -> Tensor:
        """Of its own features, shape (B, F', d), of ids (B, F)."""
        own = self.features
        return self._rows(ids[:, own], self.starts[own], self.sizes[own])

    def of_all(self, ids: Tensor, features: Tensor) -> Tensor:
        """Of ids (L,) of any features (L,), shape (L, d); zeros for those of other stacks."""
        if self.has_all:
            return self._rows(ids, self.starts[features], self.sizes[features])
        is_here = self.is_here[features]
        # row 0 stands for ids of other stacks
        ids = torch.where(is_here, ids, 0)
        rows = self._rows(ids, self.starts[features], torch.where(is_here, self.sizes[features], 1))
        return rows * is_here.unsqueeze(1)

    def _rows(self, ids: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
        """Rows of ids; an id outside its table asks for a row behind the last, which is none."""
        is_there = (ids >= 0) & (ids < sizes)
        places = torch.where(is_there, ids + starts, self.stack.shape[0])
        return nn.functional.embedding(places, self.stack)


class _Lookup(nn.Module):
    """Pooled vectors of an encoded batch, in torch's own operators.

    Args:
        tables: As they are stored.
        used: The table of each feature.
        takes_mean: Of each feature, whether its bags' sums are divided by their sizes.
        dtype: Of the rows.
    """

    order: Tensor
    takes_mean: Tensor

    def __init__(
        self,
        tables: StoredTables,
        used: Sequence[str],
        takes_mean: Sequence[bool],
        dtype: TableDtype,
    ) -> None:
        super().__init__()
        parts = (
            [part for part in tables.parts() if len(part[1])]
            if isinstance(tables, MixedTables)
            else [(tables, torch.arange(len(used)))]
        )
        self.dim, self.num_features = tables.embedding_dim, len(used)
        self.has_means = any(takes_mean)
        self.register_buffer("takes_mean", torch.tensor(takes_mean).unsqueeze(1))
        self.stacks: list[_Rows] = nn.ModuleList(  # type: ignore[assignment]
            _Rows(*part, used, dtype) for part in parts
        )
        order = torch.cat([features for _, features in parts] or [torch.empty(0)])
        self.register_buffer("order", order.argsort())

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Shape (B, F, D)."""
        if not self.num_features:
            dense = inputs[DENSE]
            return dense.new_empty(dense.shape[0], 0, self.dim)
        if LENGTHS in inputs:
            return self._bags(inputs[IDS], inputs[LENGTHS], inputs.get(WEIGHTS))
        vectors = [self._widened(stack.of_own(inputs[IDS])) for stack in self.stacks]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)[:, self.order]

    def _bags(self, ids: Tensor, lengths: Tensor, weights: Tensor | None) -> Tensor:
        """Pooled vectors, shape (B, F, D), of `ids` (L,) in bags of `lengths` (F, B)."""
        F, B = lengths.shape
        flat = lengths.reshape(-1)
        # the bag of an id is the number of later bags that begin at it or before
        begins = torch.zeros(ids.shape[0] + 1, dtype=torch.int64)
        begins = begins.scatter_add(0, flat.cumsum(0), torch.ones_like(flat))
        bags = begins.cumsum(0)[:-1]
        features = bags // B
        rows, *others = (self._widened(stack.of_all(ids, features)) for stack in self.stacks)
        for other in others:
            rows = rows + other
        if weights is not None:
            rows = rows * weights.unsqueeze(1)
        D = self.dim
        pooled = torch.zeros(F * B, D).scatter_add(0, bags.unsqueeze(1).expand(-1, D), rows)
        if self.has_means:
            divisors = torch.where(self.takes_mean, lengths.clamp(min=1), 1)
            pooled = pooled / divisors.reshape(-1, 1)
        return pooled.view(F, B, D).transpose(0, 1)

    def _widened(self, rows: Tensor) -> Tensor:
        """Rows with zeros up to D numbers."""
        missing = self.dim - rows.shape[-1]
        return nn.functional.pad(rows, (0, missing)) if missing else rows


class _Whole(nn.Module):
    """An encoded batch's logits."""

    def __init__(self, lookup: _Lookup, head: DenseHead) -> None:
        super().__init__()
        self.lookup, self.head = lookup, head

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        pooled = self.lookup(inputs)
        logits: Tensor = self.head(inputs.get(DENSE, pooled), pooled)
        return logits


def _inputs(schema: Schema, batch: Batch) -> dict[str, Tensor]:
    F, B = len(schema.sparse), batch.num_samples
    sparse, found = batch.sparse, {}
    if schema.dense:
        found[DENSE] = batch.dense
    if not F:
        return found
    if sparse.lengths is None:
        return {**found, IDS: sparse.ids.view(F, B).T.long().contiguous()}
    found |= {IDS: sparse.ids.long(), LENGTHS: sparse.lengths.view(F, B).long()}
    return found if sparse.weights is None else {**found, WEIGHTS: sparse.weights}


def _traced(whole: _Whole, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """The model for any number of rows and ids."""
    rows, ids = torch.export.Dim("rows", min=1), torch.export.Dim("ids", min=1)
    is_jagged = LENGTHS in inputs
    sizes = {
        DENSE: {0: rows},
        IDS: {0: ids if is_jagged else rows},
        LENGTHS: {1: rows},
        WEIGHTS: {0: ids},
    }
    with torch.no_grad():
        shapes = ({name: sizes[name] for name in inputs},)
        return torch.export.export(whole, (inputs,), dynamic_shapes=shapes)
