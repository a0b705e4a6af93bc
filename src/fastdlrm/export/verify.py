"""What a precision costs: an exported model against the float32 model, on labelled rows.

Shapes: n rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.contracts.exported import Calibration, MlpDtype, Quality, TableDtype
from fastdlrm.data.rows import Rows
from fastdlrm.errors import ExportError
from fastdlrm.export.calibration import served_logits
from fastdlrm.metrics.evaluation import Evaluation

BATCH_ROWS = 8192

Score = Callable[[Batch], Tensor]
"""Logits of a batch, shape (B,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a precision may cost.

    Attributes:
        max_auc_drop: Most AUC.
        max_ne_rise: Most normalised entropy, relative.
    """

    max_auc_drop: float
    max_ne_rise: float


def logits_of(score: Score, rows: Rows, count: int) -> NDArray[np.float32]:
    """Logits of the first rows, shape (count,)."""
    parts = [score(batch).float() for batch in _batches(rows, count)]
    return torch.cat(parts).numpy()


def labels_of(rows: Rows, count: int) -> NDArray[np.float32]:
    """Labels of the first rows, shape (count,)."""
    return np.concatenate([batch.labels.numpy() for batch in _batches(rows, count)])


class Verification:
    """Compares precisions on the same rows.

    Args:
        exact: The float32 model.
        rows: Labelled.
        count: How many of them, from the first on.
        calibration: Applied before metrics are taken.
        table_bytes: Size of all tables in a precision.

    Attributes:
        plain: The float32 model's quality.
        expected: Its logits, shape (count,).
    """

    def __init__(
        self,
        exact: Score,
        rows: Rows,
        count: int,
        calibration: Calibration,
        table_bytes: Callable[[TableDtype], int],
    ) -> None:
        self._rows, self._count = rows, count
        self._calibration = calibration
        self._table_bytes = table_bytes
        self._labels = labels_of(rows, count)
        self.expected = logits_of(exact, rows, count)
        self.plain = self._quality(self.expected, "fp32", "fp32")

    def measure(self, score: Score, tables: TableDtype, mlp: MlpDtype) -> Quality:
        """Quality of a model in another precision."""
        return self._quality(logits_of(score, self._rows, self._count), tables, mlp)

    def _quality(self, logits: NDArray[np.float32], tables: TableDtype, mlp: MlpDtype) -> Quality:
        state = Evaluation()
        state.update(served_logits(self._calibration, logits).astype(np.float32), self._labels)
        values = state.compute()
        return Quality(
            tables=tables,
            mlp=mlp,
            tables_bytes=self._table_bytes(tables),
            max_logit_difference=float(np.abs(logits - self.expected).max(initial=0)),
            auc=values.auc,
            log_loss=values.log_loss,
            ne=values.ne,
            calibration=values.calibration,
            num_rows=len(logits),
        )


def require_quality(plain: Quality, ours: Quality, limits: Limits) -> None:
    """Check what a precision costs.

    Raises:
        ExportError: More than the limits allow.
    """
    what = f"tables {ours.tables}, MLPs {ours.mlp}"
    remedy = "choose a finer precision, or allow more"
    if plain.auc is not None and ours.auc is not None:
        drop = plain.auc - ours.auc
        if drop > limits.max_auc_drop:
            raise ExportError(
                f"{what}: AUC falls by {drop:.5f} on {ours.num_rows} rows, "
                f"{limits.max_auc_drop:g} is allowed; {remedy} with --max-auc-drop"
            )
    if plain.ne is not None and ours.ne is not None:
        rise = ours.ne / plain.ne - 1
        if rise > limits.max_ne_rise:
            raise ExportError(
                f"{what}: normalised entropy rises by {rise:.3%} on {ours.num_rows} rows, "
                f"{limits.max_ne_rise:.3%} is allowed; {remedy} with --max-ne-rise"
            )


def require_equal(found: NDArray[np.float32], expected: NDArray[np.float32], what: str) -> None:
    """Check that logits are equal in every bit.

    Args:
        found: Of the exported model, shape (n,).
        expected: Of the run's, shape (n,).
        what: Of which rows, for the message.

    Raises:
        ExportError: They are not.
    """
    if not np.array_equal(found, expected):
        row = int(np.flatnonzero(found != expected)[0])
        raise ExportError(
            f"{what} {row}: the exported float32 model's logit is {found[row]:.9g}, the run's "
            f"{expected[row]:.9g}; they must be equal: this is a defect, please report it"
        )


def _batches(rows: Rows, count: int) -> Iterator[Batch]:
    for start in range(0, count, BATCH_ROWS):
        yield rows.batch(slice(start, min(start + BATCH_ROWS, count)))
