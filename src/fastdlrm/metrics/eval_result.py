"""What `fastdlrm eval --out` leaves: the metrics of a run's model on a split, and what they are of.

RESULT.json   one EvalResult
"""

from pathlib import Path
from typing import Any

import msgspec

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.metrics.values import MetricValues

KIND = "eval"
VERSION = 1


class EvalResult(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation."""

    kind: str = KIND
    version: int = VERSION
    created_by: str
    """Package version."""
    commit: str
    """Of the source tree that evaluated; empty where it is not one."""
    started: str
    """Date and time, UTC."""
    run: str
    """Its folder, as it was named."""
    step: int
    """Of its checkpoint."""
    data: str
    """The dataset's folder, as it was named."""
    split: str
    config: dict[str, Any]
    """The run's resolved config."""
    machine: str
    """Processor or GPU; empty where it is not known."""
    values: MetricValues


def check_output(path: Path) -> None:
    """Refuse, before the work, what would fail after it.

    Raises:
        ConfigError: The path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"--out {path}: a folder; name the JSON file to write")


def write_eval_result(path: Path, result: EvalResult) -> None:
    """Write a result, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read_eval_result(path: Path) -> EvalResult:
    """Read and check a result.

    Raises:
        DataError: It is of another version, or damaged.
    """
    try:
        result = msgspec.json.decode(path.read_bytes(), type=EvalResult)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: damaged: {problem}; run `fastdlrm eval` again") from problem
    if (result.kind, result.version) != (KIND, VERSION):
        raise DataError(
            f"{path}: kind and version are {(result.kind, result.version)}, wanted "
            f"{(KIND, VERSION)}; run `fastdlrm eval` of this version"
        )
    return result
