"""An exported model as one ONNX file, its tables inside, for whatever runs ONNX.

Its inputs are those of an encoded request (`fastdlrm.contracts.signature`), its output is the logit
before calibration; all numbers are float32. An id outside its table is an error of the runtime's.
Invariant: rows of bags are added one after the other, as in the other lookups, not by differences
of running sums, which would lose what a long batch's sum has outgrown.

Shapes: B batch, N dense features, F sparse features, D embedding dim, L ids in the batch, R rows of
all tables.
"""

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
from fastdlrm.export.tables import map_stack, plain_rows, table_starts
from fastdlrm.model.compression_config import CompressionConfig
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.layout import Layout, layout_of

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


def require_small(num_rows: int, dim: int) -> None:
    """Check that tables fit into one ONNX file.

    Args:
        num_rows: R.
        dim: D.

    Raises:
        ExportError: They do not.
    """
    num_bytes = num_rows * dim * 4
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
    num_rows = sum(layout.num_embeddings.values())
    stored = map_stack(folder / TABLES, num_rows, config.embedding_dim, dtype)
    lookup = _Lookup(layout, plain_rows(stored, dtype), is_mean=config.pooling == "mean")
    whole = _Whole(lookup, DenseHead(model)).eval()
    inputs = _inputs(schema, batch)
    write_onnx(folder / FILE, _traced(whole, inputs), list(inputs))
    (found,) = onnx_session(folder / FILE).run([OUTPUT], onnx_inputs(schema, batch))
    difference = float(np.abs(found - logits).max())
    require_close(difference, dtype)
    return OnnxModel(file=FILE, inputs=tuple(inputs), max_logit_difference=difference)


class _Lookup(nn.Module):
    """Pooled vectors of an encoded batch, in torch's own operators."""

    stack: Tensor
    starts: Tensor
    sizes: Tensor

    def __init__(self, layout: Layout, stack: Tensor, *, is_mean: bool) -> None:
        super().__init__()
        sizes, used = layout.num_embeddings, layout.feature_tables
        starts = table_starts(sizes)
        self.is_mean = is_mean
        self.register_buffer("stack", stack)
        self.register_buffer("starts", torch.tensor([starts[t] for t in used], dtype=torch.int64))
        self.register_buffer("sizes", torch.tensor([sizes[t] for t in used], dtype=torch.int64))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Shape (B, F, D)."""
        if not len(self.starts):
            dense = inputs[DENSE]
            return dense.new_empty(dense.shape[0], 0, self.stack.shape[1])
        if LENGTHS in inputs:
            return self._bags(inputs[IDS], inputs[LENGTHS], inputs.get(WEIGHTS))
        return self._rows(inputs[IDS], self.starts, self.sizes)

    def _bags(self, ids: Tensor, lengths: Tensor, weights: Tensor | None) -> Tensor:
        """Pooled vectors, shape (B, F, D), of `ids` (L,) in bags of `lengths` (F, B)."""
        F, B = lengths.shape
        flat = lengths.reshape(-1)
        # the bag of an id is the number of later bags that begin at it or before
        begins = torch.zeros(ids.shape[0] + 1, dtype=torch.int64)
        begins = begins.scatter_add(0, flat.cumsum(0), torch.ones_like(flat))
        bags = begins.cumsum(0)[:-1]
        features = bags // B
        rows = self._rows(ids, self.starts[features], self.sizes[features])
        if weights is not None:
            rows = rows * weights.unsqueeze(1)
        D = rows.shape[1]
        pooled = torch.zeros(F * B, D).scatter_add(0, bags.unsqueeze(1).expand(-1, D), rows)
        if self.is_mean:
            pooled = pooled / flat.clamp(min=1).unsqueeze(1)
        return pooled.view(F, B, D).transpose(0, 1)

    def _rows(self, ids: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
        """Rows of ids; an id outside its table asks for a row behind the last, which is none."""
        is_there = (ids >= 0) & (ids < sizes)
        places = torch.where(is_there, ids + starts, self.stack.shape[0])
        return nn.functional.embedding(places, self.stack)


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
