"""What `fastdlrm tune` leaves: the space that was searched, and its trials.

STUDY/study.json   one StudyResult, written anew after each trial
"""

from pathlib import Path
from typing import Any, Literal

import msgspec

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import DataError

STUDY = "study.json"
KIND = "study"
VERSION = 1

TrialState = Literal["running", "complete", "pruned", "failed"]


class Range(msgspec.Struct, frozen=True, kw_only=True, tag="range"):
    """Numbers of one key, both ends included."""

    low: float
    high: float
    is_log: bool = False
    """Whether equal factors are equally likely; else equal distances."""
    step: float | None = None
    """Distance of the numbers from `low` on; None: any number between."""
    is_integer: bool = False


class Choice(msgspec.Struct, frozen=True, kw_only=True, tag="choice"):
    """Values of one key, in no order."""

    values: tuple[Any, ...]


class Variant(msgspec.Struct, frozen=True, kw_only=True, tag="variant"):
    """Named sets of keys; the keys of a set go together."""

    options: dict[str, dict[str, Any]]
    """Values by key, by the option's name."""


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """All configs of a study."""

    parameters: dict[str, Range | Choice | Variant]
    """By key of the config, e.g. "model.dropout"; a Variant by its own name."""
    same: dict[str, str] = {}
    """Keys that take another key's value, and which."""


class StudySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a study the study it is: a resumed one must agree in all of it."""

    config: dict[str, Any]
    """The resolved config, as it is where no parameter changes it."""
    space: Space
    metric: str
    """Of validation; a trial's value is its best over the trial's evaluations."""
    is_higher_better: bool
    seed: int
    """Of the parameters that are drawn; each trial trains with the config's own seed."""
    evaluations_per_epoch: int | None
    """None: as the config says."""
    is_pruning: bool
    """Whether a trial below the median of the others at the same evaluation is ended."""
    dataset_sha256: str
    """Of the dataset's manifest."""


class TrialRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One config that was tried."""

    number: int
    """From 0."""
    state: TrialState
    params: dict[str, Any]
    """Value by parameter; of a variant the option's name."""
    value: float | None
    """Best metric so far; None without an evaluation that defines it."""
    evaluations: dict[int, float]
    """The metric by the number of the evaluation, from 1; absent where it is undefined."""
    run: str
    """Its run's folder, relative to the study."""
    started: str
    """Date and time, UTC."""
    seconds: float | None
    """In the process that ended it; None while it runs."""
    num_starts: int
    """More than 1 where it was continued after its process had died."""
    reason: str
    """Why it failed; else empty."""


class StudyResult(msgspec.Struct, frozen=True, kw_only=True):
    """A study, finished or not."""

    kind: str = KIND
    version: int = VERSION
    created_by: str
    """Package version."""
    commit: str
    """Of the source tree that began it; empty where it is not one."""
    started: str
    """Date and time, UTC."""
    machine: str
    """Processor or GPU that it was begun on; empty where it is not known."""
    num_cores: int
    """Logical cores it could use."""
    sampler: str
    """How parameters are drawn, with the version of the library that draws them."""
    data: str
    """The dataset's folder, as it was named."""
    settings: StudySettings
    trials: tuple[TrialRecord, ...]
    """By number."""
    best: int | None
    """Number of the trial with the best value among the complete ones; None without one."""
    importances: dict[str, float]
    """Share of the values' variance by parameter, largest first; empty while the study runs and
    where too few trials tell."""

    @property
    def ranked(self) -> list[TrialRecord]:
        """Trials by value, best first, complete ones before all others."""
        sign = -1 if self.settings.is_higher_better else 1

        def rank(trial: TrialRecord) -> tuple[bool, bool, float, int]:
            value = trial.value
            return trial.state != "complete", value is None, sign * (value or 0), trial.number

        return sorted(self.trials, key=rank)


def value_text(value: Any) -> str:
    """A parameter's value, for a reader."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_study(folder: Path, study: StudyResult) -> None:
    """Write a study's result, atomically."""
    write_atomic(folder / STUDY, msgspec.json.format(msgspec.json.encode(study), indent=1) + b"\n")


def read_study(folder: Path) -> StudyResult:
    """Read and check a study's result.

    Raises:
        DataError: It is of another version, or damaged.
    """
    path = folder / STUDY
    try:
        study = msgspec.json.decode(path.read_bytes(), type=StudyResult)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise DataError(
            f"{path}: damaged: {problem}; take the folder away and run `fastdlrm tune` again"
        ) from problem
    if (study.kind, study.version) != (KIND, VERSION):
        raise DataError(
            f"{path}: kind and version are {(study.kind, study.version)}, wanted "
            f"{(KIND, VERSION)}; run `fastdlrm tune` of this version"
        )
    return study
