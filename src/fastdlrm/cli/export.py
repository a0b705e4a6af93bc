"""`fastdlrm export`: run -> exported model."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fastdlrm.cli.options import CheckpointName, Json, RunFolder, emit
from fastdlrm.contracts.exported import ExportedManifest
from fastdlrm.errors import ConfigError


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to make, e.g. MODELS/ctr/1 to serve MODELS.")],
    data: Annotated[
        Path | None,
        typer.Option(help="The run's dataset: verifies on its test split, calibrates."),
    ] = None,
    checkpoint: CheckpointName = "best",
    name: Annotated[str, typer.Option(help="What requests call the model.")] = "ctr",
    tables: Annotated[str, typer.Option(help="Rows of tables: fp32, bf16, int8, int4.")] = "fp32",
    mlp: Annotated[str, typer.Option(help="Products of the MLPs: fp32, bf16, int8.")] = "fp32",
    program: Annotated[
        str, typer.Option(help="What computes after the lookup: eager, onnx, aoti.")
    ] = "eager",
    onnx_model: Annotated[
        bool, typer.Option("--onnx-model", help="Write model.onnx too, its tables inside.")
    ] = False,
    calibrate: Annotated[
        str, typer.Option(help="Fit on the validation split: none, platt, isotonic.")
    ] = "none",
    negative_rate: Annotated[
        float, typer.Option(help="Share of the negatives that training saw.")
    ] = 1.0,
    max_auc_drop: Annotated[float, typer.Option(help="Most AUC a precision may cost.")] = 0.001,
    max_ne_rise: Annotated[
        float, typer.Option(help="Most normalised entropy it may cost, relative.")
    ] = 0.001,
    verify_rows: Annotated[
        int, typer.Option(help="Most rows of the test split to compare.")
    ] = 1_000_000,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure all other precisions too.")
    ] = False,
    requests: Annotated[
        list[str] | None,
        typer.Option(help="Raw file of real requests, to check and warm up with. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a run's model as one directory that can be served.

    It holds the weights, the encoding of raw values, golden rows with their scores and what the
    chosen precision costs on the test split; an export that costs more than allowed is refused.

        fastdlrm export --run RUN --data DATA --tables int8 --out MODELS/ctr/1
    """
    import torch

    from fastdlrm.contracts.manifest import MANIFEST, sha256_of
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.data.source import expand_inputs
    from fastdlrm.export.logged_rows import logged_rows
    from fastdlrm.export.write import GOLDEN_ROWS, WARMUP_ROWS, ExportOptions, Source
    from fastdlrm.export.write import export as write
    from fastdlrm.train.matmul import use
    from fastdlrm.train.run import Run

    try:
        options = msgspec.convert(
            {
                "name": name,
                "tables": tables,
                "mlp": mlp,
                "program": program,
                "onnx_model": onnx_model,
                "calibrate": calibrate,
                "negative_rate": negative_rate,
                "max_auc_drop": max_auc_drop,
                "max_ne_rise": max_ne_rise,
                "verify_rows": verify_rows,
                "compare": compare,
            },
            ExportOptions,
        )
    except msgspec.ValidationError as problem:
        raise ConfigError(
            f"export: {problem}; --tables fp32, bf16, int8, int4; --mlp fp32, bf16, int8; "
            "--program eager, onnx, aoti; --calibrate none, platt, isotonic"
        ) from problem
    opened = Run.open(run)
    splits: dict[str, Any] = {}
    if data is not None:
        dataset = Dataset.open(data)
        opened.require_same_encoding(dataset)
        splits = {
            split: dataset.split(split)
            for split in ("validation", "test")
            if split in dataset.manifest.splits
        }
    source = Source(
        model=opened.load_model(checkpoint),
        config=opened.recipe.model,
        schema=opened.manifest.schema,
        encoding=opened.manifest.encoding,
        vocabularies=run,
        source=opened.recipe.data.source,
        matmul=use(run, torch.device("cpu")),
        step=int(opened.checkpoint_folder(checkpoint).name.removeprefix("step-")),
        run_sha256=sha256_of(run / MANIFEST),
    )
    real = None
    if requests:
        paths, wanted = expand_inputs(requests), GOLDEN_ROWS + WARMUP_ROWS
        real = logged_rows(paths, source.source, source.schema, wanted, seed=1)
    manifest = write(source, options, out, **splits, requests=real)

    emit(manifest, json, lambda: _lines(manifest, out))


def _lines(manifest: ExportedManifest, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"model": f"{manifest.name}, step {manifest.step}"}
    for quality in manifest.quality:
        head = f"tables {quality.tables}, MLPs {quality.mlp}"
        found[f"{head}: AUC"] = quality.auc
        found[f"{head}: NE"] = quality.ne
        found[f"{head}: log loss"] = quality.log_loss
        found[f"{head}: calibration"] = quality.calibration
        found[f"{head}: table bytes"] = quality.tables_bytes
        found[f"{head}: largest logit difference"] = quality.max_logit_difference
    if manifest.onnx_model is not None:
        found["model.onnx: largest logit difference"] = manifest.onnx_model.max_logit_difference
    if not manifest.quality:
        found["verified"] = "golden rows only; name the dataset with --data for more"
    return {**found, "folder": str(out)}
