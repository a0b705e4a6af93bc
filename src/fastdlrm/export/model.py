"""The one door to an exported model: raw rows or encoded batches in, probabilities out.

Invariant: a row's probability depends on the row alone, not on what else is scored with it. On the
CPU in float32 it is the one that `fastdlrm predict` gives for the run, bit for bit.

Shapes: B batch.
"""

from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.config import from_tree
from fastdlrm.contracts.delta import DELTAS, Delta, delta_path, read_delta, sequences
from fastdlrm.contracts.exported import (
    SCORE,
    CompiledKind,
    ExportedManifest,
    MlpDtype,
    ProgramKind,
)
from fastdlrm.contracts.manifest import MANIFEST, read_manifest, verify_files
from fastdlrm.contracts.schema import Schema
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.errors import DataError, ExportError, RequestError
from fastdlrm.export.calibration import probabilities
from fastdlrm.export.graphs import GraphedPredictor
from fastdlrm.export.offline import OfflineEncoder
from fastdlrm.export.programs import DenseProgram, load_program, machine, require_machine
from fastdlrm.export.request_encoder import RequestEncoder
from fastdlrm.export.tables import open_tables, replace_rows
from fastdlrm.export.vocabulary_index import INDEX, VocabularyIndex
from fastdlrm.kernels.cpu.matmul import apply as multiply_as
from fastdlrm.model.build import around_tables
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.int8_predictor import Int8Predictor
from fastdlrm.model.layout import layout_of
from fastdlrm.model.lookup import Tables
from fastdlrm.model.predictor import Predictor

GOLDEN, WARMUP, TABLES, MLP = "golden.arrow", "warmup.arrow", "tables.bin", "mlp.safetensors"
PRODUCTS: dict[MlpDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE: dict[MlpDtype, float] = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.1}
"""Of a golden row's logit where another machine, another torch or a GPU computes it: rounding that
a calibration may magnify. A wrong id moves logits by more than float32's."""


class ExportedModel:
    """A model as it was exported.

    Attributes:
        folder: Where it lies.
        manifest: What it is.
        device: Where it computes.
        program: What computes the part after the lookup.
        encoder: Turns requests into batches.
        sequence: Of the last delta that was applied; 0 before the first.
    """

    def __init__(
        self,
        folder: Path,
        manifest: ExportedManifest,
        device: torch.device,
        program: ProgramKind | None = None,
    ) -> None:
        """Open a folder without checks; `load` makes them."""
        self.folder = folder
        self.manifest = manifest
        self.device = device
        self.sequence = 0
        schema, encoding = manifest.schema, manifest.encoding
        if device.type == "cpu":
            multiply_as(manifest.matmul)
        config = from_tree(manifest.config["model"], ModelConfig, str(folder / MANIFEST))
        layout = layout_of(config, schema, encoding)
        self._tables = open_tables(folder / TABLES, config, layout, manifest.table_dtype, device)
        self._lookup = layout.wrapped(self._tables)
        model = with_weights(folder / MLP, config, schema, self._lookup).to(device)
        self._predictor = predictor_of(model, manifest, device)
        self.program = program or manifest.program
        self._graphs: GraphedPredictor | None = None
        if device.type == "cuda" and not any(feature.bag for feature in schema.sparse):
            sizes = len(schema.dense), len(schema.sparse)
            self._graphs = GraphedPredictor(self._predictor, *sizes, device)
        self._dense: DenseProgram | None = None
        if self.program != "eager":
            self._dense = _compiled(folder, manifest, device, self.program)
        vocabularies = VocabularyIndex.open(folder / INDEX, encoding)
        encoder = Encoder(schema, encoding, vocabularies.tables())
        self._offline = OfflineEncoder(schema, manifest.missing, encoder)
        is_text = manifest.config["source"]["format"] == "csv"
        self.encoder = RequestEncoder(
            schema, encoding, manifest.missing, vocabularies, trims=is_text
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        program: ProgramKind | None = None,
        check: bool = True,
    ) -> "ExportedModel":
        """Open a model.

        Args:
            folder: Made by `fastdlrm export`.
            device: Where to compute.
            program: What computes; None: what the model was exported with.
            check: Whether to compare every file's checksum and the golden scores.

        Raises:
            ExportError: No exported model there, it is damaged, or it scores otherwise than when
                it was exported.
        """
        manifest = read_manifest(folder, ExportedManifest, ExportError)
        verify_files(folder, manifest, ExportError, deep=check)
        try:
            model = cls(folder, manifest, torch.device(device), program)
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
        if self._graphs is not None:
            return self._graphs(batch)
        moved = batch if self.device.type == "cpu" else batch.to(self.device)
        if self._dense is not None:
            return self._dense(moved.dense, self._lookup(moved.sparse, torch.float32))
        return self._predictor(moved.dense, moved.sparse).cpu()

    @property
    def source(self) -> SourceConfig:
        """How the raw files look that it was trained from."""
        where = str(self.folder / MANIFEST)
        return from_tree(self.manifest.config["source"], SourceConfig, where)

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
        return self._offline.batch(rows)

    def encode_staged(self, staged: pa.RecordBatch) -> Rows:
        """Rows that were typed already, as `fastdlrm.data.convert.Converter` types them.

        Raises:
            DataError: A value is wrong.
        """
        return self._offline.staged(staged)

    def predict_raw(self, rows: pa.RecordBatch) -> NDArray[np.float32]:
        """Probabilities of raw rows, shape (B,).

        Args:
            rows: As `encode` takes them.

        Raises:
            DataError: As `encode`.
        """
        return self.predict(self.encode(rows))

    def golden(self) -> pa.RecordBatch:
        """The golden rows: raw columns, and `SCORE` as it was when the model was exported."""
        return read_rows(self.folder / GOLDEN)

    def warmup_rows(self) -> pa.RecordBatch:
        """Raw rows to warm up with, and to try the model with."""
        return read_rows(self.folder / WARMUP)

    def check_golden(self) -> None:
        """Score the golden rows again, by the way that requests go.

        On the processor and torch that exported the model scores must be equal in every bit.

        Raises:
            ExportError: A score differs by more than that, or than rounding elsewhere.
        """
        rows = self.golden()
        expected = rows.column(SCORE).to_numpy()
        try:
            inputs = request_inputs(rows.drop_columns([SCORE]))
            encoded = self.encoder.encode(inputs, 0, self.encoder.num_rows(inputs))
        except RequestError as problem:
            raise ExportError(f"{self.folder}: golden rows: {problem}") from problem
        logits = self.logits(RequestEncoder.join([encoded])).numpy()
        is_same = (
            self.device.type == "cpu"
            and self.program == self.manifest.program
            and machine() == self.manifest.machine
        )
        allowed = np.float32(0 if is_same else TOLERANCE[self.manifest.mlp_dtype])
        ends = [probabilities(self.manifest.calibration, logits + x) for x in (-allowed, allowed)]
        is_right = (expected >= np.minimum(*ends)) & (expected <= np.maximum(*ends))
        if not is_right.all():
            row = int(np.flatnonzero(~is_right)[0])
            found = probabilities(self.manifest.calibration, logits)[row]
            raise ExportError(
                f"{self.folder}: golden row {row} scores {found:.9g}, {expected[row]:.9g} when it "
                f"was exported (allowed difference of the logit: {allowed:g}); do not serve it: "
                "export the run again with this version"
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
        base = self.manifest.files[TABLES].sha256
        if delta.base not in ("", base):
            raise ExportError(
                f"delta {delta.sequence}: made for tables {delta.base[:12]}.., the model's are "
                f"{base[:12]}..; it belongs to another export"
            )
        ids, rows = torch.from_numpy(delta.ids), torch.from_numpy(delta.rows)
        try:
            replace_rows(self._tables, delta.table, ids, rows)
        except ExportError as problem:
            raise ExportError(f"delta {delta.sequence}: {problem}") from problem
        self.sequence = delta.sequence

    def apply_deltas(self) -> int:
        """Apply the deltas in the model's folder, in order, as a server does.

        Returns:
            Number of the last one; 0 where there is none.

        Raises:
            ExportError: One is missing, damaged or of another model; those before it are applied.
        """
        folder = self.folder / DELTAS
        for number in sequences(folder):
            if number > self.sequence:
                self.apply(read_delta(delta_path(folder, number)))
        return self.sequence

    def warm(self, max_rows: int) -> list[tuple[int, float]]:
        """Score requests of 1, 2, 4, .. `max_rows` rows of text, so that none is the first.

        Returns:
            Rows, and seconds to encode and score them the second time.
        """
        self.encoder.warm()
        rows = self.warmup_rows()
        measured = []
        sizes = {2**power for power in range(max_rows.bit_length())}
        for size in sorted({*sizes, max_rows}):
            inputs = request_inputs(rows.take(pa.array(np.arange(size) % rows.num_rows)))
            for _ in range(2):
                started = perf_counter()
                self.predict(RequestEncoder.join([self.encoder.encode(inputs, 0, size)]))
                took_s = perf_counter() - started
            measured.append((size, took_s))
        return measured


def request_inputs(rows: pa.RecordBatch) -> dict[str, WireTensor]:
    """Raw rows as the inputs of a request: texts, a list as its values and its lengths.

    Args:
        rows: As `golden` and `warmup_rows` give them.
    """
    inputs: dict[str, WireTensor] = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if pa.types.is_list(column.type):
            inputs[name] = WireTensor.from_texts(column.flatten().to_pylist())
            lengths = column.value_lengths().to_numpy().astype(np.int32)
            inputs[f"{name}.lengths"] = WireTensor.from_array(lengths)
        else:
            inputs[name] = WireTensor.from_texts(column.fill_null("").to_pylist())
    return inputs


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


def predictor_of(model: DLRM, manifest: ExportedManifest, device: torch.device) -> Predictor:
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


def _compiled(
    folder: Path, manifest: ExportedManifest, device: torch.device, kind: CompiledKind
) -> DenseProgram:
    """A compiled program of the model.

    Raises:
        ExportError: There is none, or it cannot run here.
    """
    if device.type != "cpu":
        raise ExportError(
            f"{folder}: program {kind!r} on {device.type}: it is for CPUs; use 'eager'"
        )
    found = [entry for entry in manifest.programs if entry.kind == kind]
    if not found:
        raise ExportError(f"{folder}: no program {kind!r}; export the run with --program {kind}")
    require_machine(found[0])
    return load_program(folder, kind)


def with_weights(path: Path, config: ModelConfig, schema: Schema, tables: Tables) -> DLRM:
    """The model with its stored MLPs, in evaluation mode, on the CPU but for its tables.

    Raises:
        ExportError: The file is of another model.
    """
    model = around_tables(config, schema, tables, torch.Generator().manual_seed(0))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise ExportError(f"{path}: no weights: {problem}; export the model again") from problem
    expected = {name for name in model.state_dict() if not name.startswith("tables.")}
    if differing := sorted(set(weights) ^ expected):
        raise ExportError(
            f"{path}: {differing[0]!r} is in the file or in the model alone; export the run again"
        )
    model.load_state_dict(weights, strict=False)
    return model.eval()
