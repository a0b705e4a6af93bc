"""Rows of a checkpoint's tensor, read slice by slice: a tensor may exceed the memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdlrm.checkpoint.storage import full_shape, open_manifest, stored_groups
from fastdlrm.checkpoint.tensor_file import StoredTensor, copy_from
from fastdlrm.errors import CheckpointError


class StoredRows:
    """A two-dimensional tensor of a checkpoint, of any number of ranks.

    Attributes:
        shape: Rows and columns.
        dtype: Of its numbers.
    """

    def __init__(
        self, pieces: Sequence[StoredTensor], factors: Sequence[StoredTensor] = ()
    ) -> None:
        """Take the pieces, of which each number is in at least one.

        Args:
            pieces: Of the tensor.
            factors: Pieces of a vector of one number a row, by which the row is multiplied.
        """
        num_rows, num_columns = full_shape(pieces)
        self.shape = (num_rows, num_columns)
        self.dtype = pieces[0].dtype
        self._pieces = pieces
        self._factors = factors

    def read(self, start: int, stop: int) -> Tensor:
        """Some rows, shape (stop - start, columns), on the CPU.

        Raises:
            CheckpointError: A file ends too soon.
        """
        found = torch.empty(stop - start, self.shape[1], dtype=self.dtype)
        _fill(found, self._pieces, start)
        if self._factors:
            factors = torch.empty(stop - start, dtype=self._factors[0].dtype)
            _fill(factors, self._factors, start)
            found.mul_(factors.unsqueeze(1))
        return found

    def gather(self, rows: Sequence[int]) -> Tensor:
        """Single rows, shape (len(rows), columns)."""
        found = [self.read(row, row + 1) for row in rows]
        return torch.cat(found) if found else torch.empty(0, self.shape[1], dtype=self.dtype)


def _fill(target: Tensor, pieces: Sequence[StoredTensor], start: int) -> None:
    """Copy rows from `start` on, as many as the target has."""
    for piece in pieces:
        first, *columns = piece.offsets
        low, high = max(start, first), min(start + len(target), first + piece.shape[0])
        if low < high:
            part = target[low - start : high - start]
            for column in columns:
                part = part[:, column : column + piece.shape[1]]
            copy_from(piece, (low - first, *(0 for _ in columns)), part)


def stored_rows(
    folder: Path, group: str, names: Sequence[str], factors: Mapping[str, str] | None = None
) -> dict[str, StoredRows]:
    """Two-dimensional tensors of a checkpoint, by name.

    Args:
        folder: One checkpoint.
        group: Of the tensors.
        names: Theirs.
        factors: By name of a tensor, that of a vector by which its rows are multiplied.

    Raises:
        CheckpointError: It is missing, damaged, or lacks one of them.
    """
    stored = stored_groups(folder, open_manifest(folder, (group,)), (group,))[group]
    factors = factors or {}
    for name in (*names, *factors.values()):
        if name not in stored:
            raise CheckpointError(
                f"{folder}: no tensor {group}/{name}; it is of another model, or damaged"
            )
    vectors = {name: stored[vector] for name, vector in factors.items()}
    return {name: StoredRows(stored[name], vectors.get(name, ())) for name in names}
