"""The one door to an exported model: raw rows or encoded batches in, probabilities out.

Invariant: a row's probability depends on the row alone, not on what else is scored with it. On the
CPU in float32 it is the one that `fastdlrm predict` gives for the run, bit for bit.

Shapes: B batch.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.config import from_tree
from fastdlrm.contracts.delta import Delta
from fastdlrm.contracts.exported import SCORE, ExportedManifest, Machine, MlpDtype
from fastdlrm.contracts.manifest import MANIFEST, read_manifest, verify_files
from fastdlrm.contracts.processor import processor_name
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.convert import Converter
from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.errors import DataError, ExportError
from fastdlrm.export.calibration import probabilities
from fastdlrm.export.tables import replace_rows, stored_tables
from fastdlrm.kernels.cpu.matmul import apply as multiply_as
from fastdlrm.model.build import around_tables, feature_tables, table_sizes
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.int8_predictor import Int8Predictor
from fastdlrm.model.lookup import Tables
from fastdlrm.model.predictor import Predictor

GOLDEN, WARMUP, TABLES, MLP = "golden.arrow", "warmup.arrow", "tables.bin", "mlp.safetensors"
PRODUCTS: dict[MlpDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 2e-6, "bf16": 2e-2, "int8": 2e-2}
"""Of a golden score where another machine, another torch or a GPU computes it, by `mlp_dtype`."""


class ExportedModel:
    """A model as it was exported.

    Attributes:
        folder: Where it lies.
        manifest: What it is.
        device: Where it computes.
        sequence: Of the last delta that was applied; 0 before the first.
    """

    def __init__(self, folder: Path, manifest: ExportedManifest, device: torch.device) -> None:
        """Open a folder without checks; `load` makes them."""
        self.folder = folder
        self.manifest = manifest
        self.device = device
        self.sequence = 0
        schema, encoding = manifest.schema, manifest.encoding
        if device.type == "cpu":
            multiply_as(manifest.matmul)
        config = from_tree(manifest.config["model"], ModelConfig, str(folder / MANIFEST))
        self._tables = stored_tables(
            folder / TABLES,
            table_sizes(schema, encoding),
            feature_tables(schema),
            dim=config.embedding_dim,
            dtype=manifest.table_dtype,
            pooling=config.pooling,
            device=device,
        )
        model = _with_weights(folder / MLP, config, schema, self._tables).to(device)
        self._predictor = _predictor(model, manifest, device)
        self._converter = Converter(
            "request", schema, manifest.missing, labelled=False, time_column=""
        )
        self._encoder = Encoder.load(folder, schema, encoding)

    @classmethod
    def load(
        cls, folder: Path, *, device: torch.device | str = "cpu", check: bool = True
    ) -> "ExportedModel":
        """Open a model.

        Args:
            folder: Made by `fastdlrm export`.
            device: Where to compute.
            check: Whether to compare every file's checksum and the golden scores.

        Raises:
            ExportError: No exported model there, it is damaged, or it scores otherwise than when
                it was exported.
        """
        manifest = read_manifest(folder, ExportedManifest, ExportError)
        verify_files(folder, manifest, ExportError, deep=check)
        try:
            model = cls(folder, manifest, torch.device(device))
        except DataError as problem:
            raise ExportError(str(problem)) from problem
        if check:
            model.check_golden()
        return model

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.manifest.name

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Logits of encoded rows, before calibration, shape (B,), float32, on the CPU."""
        moved = batch if self.device.type == "cpu" else batch.to(self.device)
        return self._predictor(moved.dense, moved.sparse).cpu()

    def predict(self, batch: Batch) -> NDArray[np.float32]:
        """Probabilities of encoded rows, shape (B,)."""
        return probabilities(self.manifest.calibration, self.logits(batch).numpy())

    def encode(self, rows: pa.RecordBatch) -> Batch:
        """Raw rows as a batch.

        Args:
            rows: The raw columns, as a log has them; others are left alone.

        Raises:
            DataError: A column is missing, or a value is wrong.
        """
        absent = [name for name in self._converter.columns if name not in rows.schema.names]
        if absent:
            raise DataError(
                f"column {absent[0]!r} is missing; the model needs "
                f"{', '.join(self._converter.columns)}"
            )
        staged, flaws = self._converter.convert(rows)
        if flaws:
            row, what = min(flaws.items())
            raise DataError(f"row {row}: {what}; correct the row")
        encoded = Rows([self._encoder.encode(staged)], self.manifest.schema)
        return encoded.batch(slice(0, len(encoded)))

    def predict_raw(self, rows: pa.RecordBatch) -> NDArray[np.float32]:
        """Probabilities of raw rows, shape (B,).

        Args:
            rows: As `encode` takes them.

        Raises:
            DataError: As `encode`.
        """
        return self.predict(self.encode(rows))

    def golden(self) -> pa.RecordBatch:
        """The golden rows: raw columns, and `score` as it was when the model was exported."""
        return read_rows(self.folder / GOLDEN)

    def warmup_rows(self) -> pa.RecordBatch:
        """Raw rows to warm up with, and to try the model with."""
        return read_rows(self.folder / WARMUP)

    def check_golden(self) -> None:
        """Score the golden rows again.

        On the processor and torch that exported the model scores must be equal in every bit.

        Raises:
            ExportError: A score differs by more than that, or than rounding elsewhere.
        """
        rows = self.golden()
        expected = rows.column(SCORE).to_numpy()
        found = self.predict_raw(rows.drop_columns([SCORE]))
        is_same = self.device.type == "cpu" and machine() == self.manifest.machine
        allowed = 0.0 if is_same else TOLERANCE[self.manifest.mlp_dtype]
        difference = np.abs(found - expected)
        if not (difference <= allowed).all():
            row = int(np.nanargmax(np.where(np.isnan(difference), np.inf, difference)))
            raise ExportError(
                f"{self.folder}: golden row {row} scores {found[row]:.9g}, {expected[row]:.9g} "
                f"when it was exported (allowed difference {allowed:g}); do not serve it: export "
                "the run again with this version"
            )

    def apply(self, delta: Delta) -> None:
        """Replace rows of a table, in this process alone.

        Args:
            delta: Of this model, with the next sequence number.

        Raises:
            ExportError: It does not follow the last one, or does not fit the tables.
        """
        if delta.sequence != self.sequence + 1:
            raise ExportError(
                f"delta {delta.sequence} after {self.sequence}: {self.sequence + 1} must be next; "
                "bring the missing one, or publish a new version"
            )
        ids, rows = torch.from_numpy(delta.ids), torch.from_numpy(delta.rows)
        try:
            replace_rows(self._tables, delta.table, ids, rows)
        except ExportError as problem:
            raise ExportError(f"delta {delta.sequence}: {problem}") from problem
        self.sequence = delta.sequence

    def warm(self, max_rows: int) -> None:
        """Score batches of 1, 2, 4, .. `max_rows` rows, so that none is the first of its size."""
        rows = self.warmup_rows()
        size = 1
        while size <= max_rows:
            repeated = [rows.slice(0, min(size, rows.num_rows))] * -(-size // rows.num_rows)
            table = pa.Table.from_batches(repeated).combine_chunks().to_batches()[0]
            self.predict_raw(table.slice(0, size))
            size *= 2


def machine() -> Machine:
    """This machine, as far as the last bits of a score depend on it."""
    return Machine(cpu=processor_name(), torch=str(torch.__version__))


def write_rows(path: Path, rows: pa.RecordBatch) -> None:
    """Write raw rows as an Arrow file."""
    with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, rows.schema) as writer:
        writer.write_batch(rows)


def read_rows(path: Path) -> pa.RecordBatch:
    """Read raw rows.

    Raises:
        ExportError: The file is damaged.
    """
    try:
        return ipc.open_file(path.read_bytes()).get_batch(0)
    except (OSError, pa.ArrowInvalid, ValueError) as problem:
        raise ExportError(f"{path}: no rows: {problem}; export the model again") from problem


def _predictor(model: DLRM, manifest: ExportedManifest, device: torch.device) -> Predictor:
    """What computes in the manifest's type.

    Raises:
        ExportError: It cannot be had here.
    """
    if manifest.mlp_dtype != "int8":
        return Predictor(model, PRODUCTS[manifest.mlp_dtype])
    if device.type != "cpu":
        raise ExportError(
            f"MLPs of int8 on {device.type}: they are for CPUs; export with --mlp bf16"
        )
    try:
        return Int8Predictor(model, manifest.activation_ranges)
    except ValueError as problem:
        raise ExportError(f"MLPs of int8: {problem}") from problem


def _with_weights(path: Path, config: ModelConfig, schema: Schema, tables: Tables) -> DLRM:
    """The model with its stored MLPs, in evaluation mode, on the CPU but for its tables.

    Raises:
        ExportError: The file is of another model.
    """
    model = around_tables(config, schema, tables, torch.Generator().manual_seed(0))
    weights = load_file(path)
    expected = {name for name in model.state_dict() if not name.startswith("tables.")}
    if differing := sorted(set(weights) ^ expected):
        raise ExportError(
            f"{path}: {differing[0]!r} is in the file or in the model alone; export the run again"
        )
    model.load_state_dict(weights, strict=False)
    return model.eval()
