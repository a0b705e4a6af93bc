"""A trained model -> an exported model, which is checked before it exists.

The folder is filled under a hidden name, opened as a server would open it, compared with the
float32 model on the test split, and renamed into place.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from fastdlrm import __version__
from fastdlrm.config import to_tree
from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.exported import (
    SCORE,
    Calibration,
    CalibrationKind,
    CompiledKind,
    ExportedManifest,
    MlpDtype,
    OnnxModel,
    Program,
    ProgramKind,
    Quality,
    TableDtype,
)
from fastdlrm.contracts.manifest import VERSIONS, entry_of, source_commit, write_manifest
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.data.write import new_folder
from fastdlrm.errors import DataError, ExportError
from fastdlrm.export.calibration import fit_calibration, probabilities
from fastdlrm.export.model import GOLDEN, MLP, TABLES, WARMUP, ExportedModel, write_rows
from fastdlrm.export.offline import OfflineEncoder
from fastdlrm.export.onnx_model import build_onnx_model, require_plain, require_small
from fastdlrm.export.precisions import other_precisions
from fastdlrm.export.programs import build_program, machine
from fastdlrm.export.sample_rows import draw_rows
from fastdlrm.export.tables import tables_bytes, write_tables
from fastdlrm.export.verify import (
    Limits,
    Verification,
    labels_of,
    logits_of,
    require_equal,
    require_quality,
)
from fastdlrm.export.vocabulary_index import INDEX, write_index
from fastdlrm.kernels.registry import Way
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.int8_mlp import Range
from fastdlrm.model.int8_predictor import activation_ranges
from fastdlrm.model.predictor import Predictor

GOLDEN_ROWS, WARMUP_ROWS = 64, 1024
GOLDEN_SEED, WARMUP_SEED = 1, 2
EXACT = ("fp32", "fp32", "eager")
"""Tables, MLPs and program of an export whose logits are the run's in every bit."""
DATASET = "name the dataset with --data, one that has this split"
RANGE_ROWS = 16_384
"""Rows of the validation split that the ranges of int8 are measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What is exported.

    Attributes:
        model: With the weights to export, on the CPU.
        config: Its shape.
        schema: Its features.
        encoding: Of their values.
        vocabularies: Folder that the encoding's files are relative to.
        source: How the raw files look.
        matmul: How the run multiplies float32 matrices on a CPU.
        step: Optimizer steps behind the weights.
        run_sha256: Of the run's manifest.
    """

    model: DLRM
    config: ModelConfig
    schema: Schema
    encoding: Encoding
    vocabularies: Path
    source: SourceConfig
    matmul: Way
    step: int
    run_sha256: str


class Splits(NamedTuple):
    """Labelled rows of a dataset; None where it has none, or there is no dataset."""

    validation: Rows | None
    test: Rows | None


class ExportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How it is exported."""

    name: str
    """What requests call it."""
    tables: TableDtype = "fp32"
    mlp: MlpDtype = "fp32"
    program: ProgramKind = "eager"
    """What computes the part after the lookup."""
    calibrate: CalibrationKind = "none"
    negative_rate: float = 1.0
    """Share of the negatives that training saw."""
    max_auc_drop: float = 0.001
    """Most AUC that the precision may cost on the test split."""
    max_ne_rise: float = 0.001
    """Most normalised entropy that it may cost, relative."""
    verify_rows: int = 1_000_000
    """Most rows of the test split that are compared."""
    onnx_model: bool = False
    """Whether the model is written as one ONNX file too, its tables inside."""
    compare: bool = False
    """Whether all other precisions are measured too; of them nothing is kept but the figures."""


def export(
    source: Source,
    options: ExportOptions,
    out: Path,
    *,
    validation: Rows | None = None,
    test: Rows | None = None,
    requests: pa.RecordBatch | None = None,
) -> ExportedManifest:
    """Write an exported model.

    Args:
        source: What is exported.
        options: How.
        out: Folder to make.
        validation: Labelled rows to calibrate with; needed for a calibration.
        test: Labelled rows to verify with; without them the manifest holds no quality.
        requests: Raw rows as `fastdlrm.export.logged_rows` gives them, to be golden rows beside
            drawn ones, and to warm up with; None: all are drawn.

    Returns:
        The manifest.

    Raises:
        ExportError: `out` holds something; a precision cannot be had, or costs more than allowed.
    """
    _require_possible(options, validation, test)
    if options.onnx_model:
        require_plain(source.config.compression)
        require_small(tables_bytes(source.model.tables.state_tensors(), "fp32"))
    try:
        with new_folder(out) as folder:
            return _fill(folder, source, options, Splits(validation, test), requests)
    except DataError as problem:
        raise ExportError(str(problem)) from problem


def _fill(
    folder: Path,
    source: Source,
    options: ExportOptions,
    splits: Splits,
    requests: pa.RecordBatch | None,
) -> ExportedManifest:
    ranges: tuple[Range, ...] = ()
    if options.mlp == "int8":
        ranges = _ranges(source, splits)
    manifest = _write_weights(folder, source, options, ranges)
    encoder = Encoder.load(source.vocabularies, source.schema, source.encoding)
    offline = OfflineEncoder(source.schema, source.source.missing, encoder)
    if options.program != "eager":
        built = _built(folder, source, offline, options.program)
        manifest = msgspec.structs.replace(manifest, program=options.program, programs=(built,))
    model = ExportedModel(folder, manifest, torch.device("cpu"))
    if splits.validation is not None and options.calibrate != "none":
        rows = splits.validation
        logits = logits_of(model.logits, rows, len(rows)).astype(np.float64)
        labels = labels_of(rows, len(rows)).astype(np.float64)
        fitted = fit_calibration(options.calibrate, logits, labels, options.negative_rate)
        model.manifest = manifest = msgspec.structs.replace(manifest, calibration=fitted)
    if splits.test is not None:
        quality = _qualities(folder, source, options, model, splits)
        model.manifest = manifest = msgspec.structs.replace(manifest, quality=quality)
    _write_rows(folder, source, offline, model, requests)
    extra = [program.file for program in manifest.programs]
    if options.onnx_model:
        onnx_model = _whole(folder, source, model)
        manifest = msgspec.structs.replace(manifest, onnx_model=onnx_model)
        extra.append(onnx_model.file)
    names = (TABLES, MLP, INDEX, GOLDEN, WARMUP, *extra, *_vocabularies(source.encoding))
    files = {name: entry_of(folder / name) for name in names}
    manifest = msgspec.structs.replace(manifest, files=files)
    write_manifest(folder, manifest)
    return manifest


def _write_weights(
    folder: Path, source: Source, options: ExportOptions, ranges: tuple[Range, ...]
) -> ExportedManifest:
    """Write tables, MLPs and vocabularies; the manifest without what is found out later."""
    for name in _vocabularies(source.encoding):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.vocabularies / name, folder / name)
    write_index(folder / INDEX, folder, source.encoding)
    write_tables(folder / TABLES, source.model.tables.state_tensors(), options.tables)
    weights = source.model.state_dict()
    mlps = {n: w.contiguous() for n, w in weights.items() if not n.startswith("tables.")}
    save_file(mlps, folder / MLP)
    return ExportedManifest(
        kind="exported",
        version=VERSIONS["exported"],
        created_by=__version__,
        commit=source_commit(),
        config={
            "model": to_tree(source.config),
            "source": to_tree(source.source),
            "export": to_tree(options),
        },
        files={},
        name=options.name,
        schema=source.schema,
        encoding=source.encoding,
        missing=tuple(source.source.missing),
        table_dtype=options.tables,
        mlp_dtype=options.mlp,
        matmul=source.matmul,
        activation_ranges=ranges,
        calibration=Calibration(negative_rate=options.negative_rate),
        quality=(),
        machine=machine(),
        step=source.step,
        run_sha256=source.run_sha256,
    )


def _built(folder: Path, source: Source, offline: OfflineEncoder, kind: CompiledKind) -> Program:
    """Compile the part after the lookup, and compare it on drawn rows."""
    batch = offline.batch(_drawn(source, WARMUP_ROWS, WARMUP_SEED))
    model = source.model.eval()
    with torch.inference_mode():
        pooled = model.tables(batch.sparse, torch.float32)
    return build_program(kind, folder, model, batch.dense, pooled.clone())


def _whole(folder: Path, source: Source, model: ExportedModel) -> OnnxModel:
    """Write the model as one ONNX file, and compare it on the golden rows."""
    batch = model.encode(model.golden())
    logits = model.logits(batch).numpy()
    return build_onnx_model(
        folder, source.model.eval(), source.config, model.manifest, batch, logits
    )


def _qualities(
    folder: Path, source: Source, options: ExportOptions, model: ExportedModel, splits: Splits
) -> tuple[Quality, ...]:
    """Quality of the float32 model, of the exported one and, where asked for, of all others.

    Raises:
        ExportError: The exported one is worse than allowed, or its float32 logits are not the
            run's.
    """
    test = splits.test
    assert test is not None
    count = min(len(test), options.verify_rows)
    exact = Predictor(source.model.eval())
    verification = Verification(
        lambda batch: exact(batch.dense, batch.sparse),
        test,
        count,
        model.manifest.calibration,
        lambda dtype: tables_bytes(source.model.tables.state_tensors(), dtype),
    )
    plain = verification.plain
    ours = verification.measure(model.logits, options.tables, options.mlp)
    if (options.tables, options.mlp, options.program) == EXACT:
        require_equal(logits_of(model.logits, test, count), verification.expected, "test row")
    limits = Limits(max_auc_drop=options.max_auc_drop, max_ne_rise=options.max_ne_rise)
    require_quality(plain, ours, limits)
    if not options.compare:
        return plain, ours
    ranges = model.manifest.activation_ranges or _ranges(source, splits)
    measured = {("fp32", "fp32"), (options.tables, options.mlp)}
    others = other_precisions(folder, source.model, model.manifest, ranges, measured)
    return plain, ours, *(verification.measure(score, t, m) for t, m, score in others)


def _ranges(source: Source, splits: Splits) -> tuple[Range, ...]:
    """Of what the layers of int8 round; none without a validation split."""
    rows = splits.validation
    if rows is None:
        return ()
    batch = rows.batch(slice(0, min(len(rows), RANGE_ROWS)))
    return activation_ranges(source.model.eval(), [batch])


def _write_rows(
    folder: Path,
    source: Source,
    offline: OfflineEncoder,
    model: ExportedModel,
    requests: pa.RecordBatch | None,
) -> None:
    """Write golden and warm-up rows; scores are those of the offline way.

    Raises:
        ExportError: The exported float32 model does not score as the run's does, or requests are
            scored otherwise than rows of a file.
    """
    golden = _drawn(source, GOLDEN_ROWS, GOLDEN_SEED)
    warmup = _drawn(source, WARMUP_ROWS, WARMUP_SEED)
    if requests is not None:
        golden = _joined(golden, requests.slice(0, GOLDEN_ROWS))
        warmup = requests.slice(GOLDEN_ROWS) if requests.num_rows > GOLDEN_ROWS else requests
    batch = offline.batch(golden)
    logits = model.logits(batch).numpy()
    if (model.manifest.table_dtype, model.manifest.mlp_dtype, model.program) == EXACT:
        expected = Predictor(source.model.eval())(batch.dense, batch.sparse).numpy()
        require_equal(logits, expected, "golden row")
    scores = pa.array(probabilities(model.manifest.calibration, logits))
    names = [*golden.schema.names, SCORE]
    write_rows(folder / GOLDEN, pa.RecordBatch.from_arrays([*golden.columns, scores], names=names))
    write_rows(folder / WARMUP, warmup)
    model.check_golden()


def _joined(first: pa.RecordBatch, second: pa.RecordBatch) -> pa.RecordBatch:
    table = pa.Table.from_batches([first, second.select(first.schema.names)])
    (rows,) = table.combine_chunks().to_batches()
    return rows


def _drawn(source: Source, num_rows: int, seed: int) -> pa.RecordBatch:
    folder, missing = source.vocabularies, source.source.missing
    return draw_rows(folder, source.schema, source.encoding, num_rows, seed, missing=missing)


def _vocabularies(encoding: Encoding) -> list[str]:
    return sorted({t.vocabulary for t in encoding.tables.values() if t.vocabulary})


def _require_possible(options: ExportOptions, validation: Rows | None, test: Rows | None) -> None:
    is_plain = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.name))
    if not is_plain:
        raise ExportError(
            f"name {options.name!r}: letters, digits, '.', '_' and '-' are allowed, a letter or "
            "digit first; choose another with --name"
        )
    if options.program != "eager" and options.mlp != "fp32":
        raise ExportError(
            f"program {options.program!r} with MLPs of {options.mlp}: compiled programs are of "
            "float32; use --mlp fp32, or --program eager"
        )
    if options.onnx_model and options.mlp != "fp32":
        raise ExportError(
            f"--onnx-model with MLPs of {options.mlp}: the ONNX file is of float32; "
            "use --mlp fp32, or export without it"
        )
    if options.verify_rows < 1:
        raise ExportError(f"--verify-rows {options.verify_rows}: 1 or more is allowed")
    if options.compare and test is None:
        raise ExportError(f"--compare: precisions are compared on the test split; {DATASET}")
    if validation is not None:
        return
    if options.calibrate != "none":
        raise ExportError(
            f"calibration {options.calibrate!r}: it is fitted on the validation split; {DATASET}"
        )
    if options.mlp == "int8":
        raise ExportError(
            f"MLPs of int8: their ranges are measured on the validation split; {DATASET}"
        )
