"""`fastdlrm export-checkpoint`: run -> a file that dlrm_s_pytorch or TorchRec loads."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import CheckpointName, Json, RunFolder, emit
from fastdlrm.errors import ConfigError


def export_checkpoint(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="File to write, e.g. dlrm.pt.")],
    to: Annotated[str, typer.Option(help="Whose names: reference or torchrec.")] = "reference",
    checkpoint: CheckpointName = "best",
    json: Json = False,
) -> None:
    """Write a run's weights for dlrm_s_pytorch.py, or for TorchRec's DLRM or DLRM_DCN.

    fastdlrm export-checkpoint --run RUN --to torchrec --out dlrm.pt
    """
    from fastdlrm.checkpoint.naming import NAMINGS
    from fastdlrm.train.interchange import export_file
    from fastdlrm.train.run import Run

    naming = next((naming.name for naming in NAMINGS if naming.name == to), None)
    if naming is None:
        raise ConfigError(f"--to {to!r}: reference or torchrec is allowed")
    state = export_file(Run.open(run), checkpoint, naming, out)
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    emit(
        {"file": str(out), "tensors": shapes},
        json,
        lambda: {
            "tensors": len(shapes),
            "numbers": sum(tensor.numel() for tensor in state.values()),
            "file": str(out),
        },
    )
