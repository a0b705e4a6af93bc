"""A trained model -> an exported model, which is checked before it exists.

The folder is filled under a hidden name, opened as a server would open it, compared with the
float32 model on the test split, and renamed into place.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from fastdlrm import __version__
from fastdlrm.batch import Batch
from fastdlrm.config import to_tree
from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.exported import (
    SCORE,
    Calibration,
    CalibrationKind,
    CompiledKind,
    ExportedManifest,
    MlpDtype,
    Program,
    ProgramKind,
    Quality,
    TableDtype,
)
from fastdlrm.contracts.manifest import VERSIONS, entry_of, source_commit, write_manifest
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.convert import Converter
from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.data.write import new_folder
from fastdlrm.errors import DataError, ExportError
from fastdlrm.export.calibration import fit_calibration, probabilities
from fastdlrm.export.model import GOLDEN, MLP, TABLES, WARMUP, ExportedModel, machine, write_rows
from fastdlrm.export.programs import build_program
from fastdlrm.export.sample_rows import draw_rows
from fastdlrm.export.tables import row_bytes, write_tables
from fastdlrm.export.vocabulary_index import INDEX, write_index
from fastdlrm.kernels.registry import Way
from fastdlrm.metrics.evaluation import Evaluation
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.int8_mlp import Range
from fastdlrm.model.int8_predictor import activation_ranges
from fastdlrm.model.predictor import Predictor

GOLDEN_ROWS, WARMUP_ROWS = 64, 1024
GOLDEN_SEED, WARMUP_SEED = 1, 2
BATCH_ROWS = 8192
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
    max_ne_rise: float = 0.002
    """Most normalised entropy that it may cost, relative."""
    verify_rows: int = 1_000_000
    """Most rows of the test split that are compared."""


def export(
    source: Source,
    options: ExportOptions,
    out: Path,
    *,
    validation: Rows | None = None,
    test: Rows | None = None,
) -> ExportedManifest:
    """Write an exported model.

    Args:
        source: What is exported.
        options: How.
        out: Folder to make.
        validation: Labelled rows to calibrate with; needed for a calibration.
        test: Labelled rows to verify with; without them the manifest holds no quality.

    Returns:
        The manifest.

    Raises:
        ExportError: `out` holds something; a precision cannot be had, or costs more than allowed.
    """
    _require_name(options.name)
    if options.calibrate != "none" and validation is None:
        raise ExportError(
            f"calibration {options.calibrate!r}: it is fitted on the validation split; name the "
            "dataset with --data"
        )
    if options.program != "eager" and options.mlp != "fp32":
        raise ExportError(
            f"program {options.program!r} with MLPs of {options.mlp}: compiled programs are of "
            "float32; use --mlp fp32, or --program eager"
        )
    if options.mlp == "int8" and validation is None:
        raise ExportError(
            "MLPs of int8: their ranges are measured on the validation split; name the dataset "
            "with --data"
        )
    try:
        with new_folder(out) as folder:
            return _fill(folder, source, options, validation, test)
    except DataError as problem:
        raise ExportError(str(problem)) from problem


def _fill(
    folder: Path,
    source: Source,
    options: ExportOptions,
    validation: Rows | None,
    test: Rows | None,
) -> ExportedManifest:
    ranges: tuple[Range, ...] = ()
    if options.mlp == "int8" and validation is not None:
        rows = slice(0, min(len(validation), RANGE_ROWS))
        ranges = activation_ranges(source.model.eval(), [validation.batch(rows)])
    manifest = _write_weights(folder, source, options, ranges)
    if options.program != "eager":
        built = _built(folder, source, options.program)
        manifest = msgspec.structs.replace(manifest, program=options.program, programs=(built,))
    model = ExportedModel(folder, manifest, torch.device("cpu"))
    if validation is not None and options.calibrate != "none":
        logits, labels = _gathered(model.logits(b) for b in _batches(validation)), validation
        fitted = fit_calibration(
            options.calibrate, logits.astype(np.float64), _labels(labels), options.negative_rate
        )
        model.manifest = manifest = msgspec.structs.replace(manifest, calibration=fitted)
    if test is not None:
        quality = _verify(source, model, test, options)
        model.manifest = manifest = msgspec.structs.replace(manifest, quality=quality)
    _write_golden(folder, source, model)
    programs = [program.file for program in manifest.programs]
    names = (TABLES, MLP, INDEX, GOLDEN, WARMUP, *programs, *_vocabularies(source.encoding))
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


def _built(folder: Path, source: Source, kind: CompiledKind) -> Program:
    """Compile the part after the lookup, and compare it on drawn rows."""
    rows = _drawn(source, WARMUP_ROWS, WARMUP_SEED)
    encoder = Encoder.load(source.vocabularies, source.schema, source.encoding)
    converter = Converter(
        "drawn rows", source.schema, source.source.missing, labelled=False, time_column=""
    )
    encoded = Rows([encoder.encode(converter.convert(rows)[0])], source.schema)
    batch = encoded.batch(slice(0, len(encoded)))
    model = source.model.eval()
    with torch.inference_mode():
        pooled = model.tables(batch.sparse, torch.float32)
    return build_program(kind, folder, model, batch.dense, pooled.clone())


def _verify(
    source: Source, model: ExportedModel, test: Rows, options: ExportOptions
) -> tuple[Quality, Quality]:
    """Quality of the float32 model and of the exported one.

    Raises:
        ExportError: The exported one is worse than allowed.
    """
    count = min(len(test), options.verify_rows)
    rows = [
        test.batch(slice(at, min(at + BATCH_ROWS, count))) for at in range(0, count, BATCH_ROWS)
    ]
    exact = Predictor(source.model.eval())
    expected = _gathered(exact(batch.dense, batch.sparse) for batch in rows)
    found = _gathered(model.logits(batch) for batch in rows)
    labels = np.concatenate([batch.labels.numpy() for batch in rows])
    calibration = model.manifest.calibration
    plain = _quality(source, expected, expected, labels, calibration, "fp32", "fp32")
    ours = _quality(source, found, expected, labels, calibration, options.tables, options.mlp)
    _require_quality(plain, ours, options)
    return plain, ours


def _quality(
    source: Source,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: NDArray[np.float32],
    calibration: Calibration,
    tables: TableDtype,
    mlp: MlpDtype,
) -> Quality:
    state = Evaluation()
    served = probabilities(calibration, logits).astype(np.float64).clip(1e-15, 1 - 1e-15)
    state.update(np.log(served / (1 - served)).astype(np.float32), labels)
    values = state.compute()
    num_rows = sum(source.model.tables.num_embeddings.values())
    return Quality(
        tables=tables,
        mlp=mlp,
        tables_bytes=num_rows * row_bytes(tables, source.config.embedding_dim),
        max_logit_difference=float(np.abs(logits - expected).max(initial=0)),
        auc=values.auc,
        log_loss=values.log_loss,
        ne=values.ne,
        calibration=values.calibration,
        num_rows=len(logits),
    )


def _require_quality(plain: Quality, ours: Quality, options: ExportOptions) -> None:
    what = f"tables {ours.tables}, MLPs {ours.mlp}"
    remedy = "choose a finer precision, or allow more"
    is_exact = (ours.tables, ours.mlp, options.program) == ("fp32", "fp32", "eager")
    if is_exact and ours.max_logit_difference > 0:
        raise ExportError(
            f"{what}: a logit differs by {ours.max_logit_difference:.3g} from the run's; 0 is "
            "allowed: this is a defect, please report it"
        )
    if plain.auc is not None and ours.auc is not None:
        drop = plain.auc - ours.auc
        if drop > options.max_auc_drop:
            raise ExportError(
                f"{what}: AUC falls by {drop:.5f} on {ours.num_rows} rows, "
                f"{options.max_auc_drop:g} is allowed; {remedy} with --max-auc-drop"
            )
    if plain.ne is not None and ours.ne is not None:
        rise = ours.ne / plain.ne - 1
        if rise > options.max_ne_rise:
            raise ExportError(
                f"{what}: normalised entropy rises by {rise:.3%} on {ours.num_rows} rows, "
                f"{options.max_ne_rise:.3%} is allowed; {remedy} with --max-ne-rise"
            )


def _write_golden(folder: Path, source: Source, model: ExportedModel) -> None:
    """Write golden and warm-up rows.

    Raises:
        ExportError: The exported float32 model does not score as the run's does.
    """
    rows = _drawn(source, GOLDEN_ROWS, GOLDEN_SEED)
    scores = model.predict_raw(rows)
    named = [*rows.columns, pa.array(scores)]
    write_rows(
        folder / GOLDEN, pa.RecordBatch.from_arrays(named, names=[*rows.schema.names, SCORE])
    )
    write_rows(folder / WARMUP, _drawn(source, WARMUP_ROWS, WARMUP_SEED))


def _drawn(source: Source, num_rows: int, seed: int) -> pa.RecordBatch:
    folder, missing = source.vocabularies, source.source.missing
    return draw_rows(folder, source.schema, source.encoding, num_rows, seed, missing=missing)


def _batches(rows: Rows) -> Iterator[Batch]:
    return rows.batches(BATCH_ROWS)


def _labels(rows: Rows) -> NDArray[np.float64]:
    return np.concatenate([b.labels.numpy() for b in _batches(rows)]).astype(np.float64)


def _gathered(parts: Iterator[Tensor]) -> NDArray[np.float32]:
    return torch.cat([part.float() for part in parts]).numpy()


def _vocabularies(encoding: Encoding) -> list[str]:
    return sorted({t.vocabulary for t in encoding.tables.values() if t.vocabulary})


def _require_name(name: str) -> None:
    is_plain = name and all(c.isalnum() or c in "._-" for c in name) and name[0].isalnum()
    if not (is_plain and name.isascii()):
        raise ExportError(
            f"name {name!r}: letters, digits, '.', '_' and '-' are allowed, a letter or digit "
            "first; choose another with --name"
        )
