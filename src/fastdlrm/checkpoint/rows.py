"""Rows of a checkpoint's tensor, read slice by slice: a tensor may exceed the memory."""

from collections.abc import Sequence
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

    def __init__(self, pieces: Sequence[StoredTensor]) -> None:
        """Take the pieces, of which each number is in at least one."""
        num_rows, num_columns = full_shape(pieces)
        self.shape = (num_rows, num_columns)
        self.dtype = pieces[0].dtype
        self._pieces = pieces

    def read(self, start: int, stop: int) -> Tensor:
        """Some rows, shape (stop - start, columns), on the CPU.

        Raises:
            CheckpointError: A file ends too soon.
        """
        found = torch.empty(stop - start, self.shape[1], dtype=self.dtype)
        for piece in self._pieces:
            first, column = piece.offsets
            low, high = max(start, first), min(stop, first + piece.shape[0])
            if low < high:
                target = found[low - start : high - start, column : column + piece.shape[1]]
                copy_from(piece, (low - first, 0), target)
        return found

    def gather(self, rows: Sequence[int]) -> Tensor:
        """Single rows, shape (len(rows), columns)."""
        found = [self.read(row, row + 1) for row in rows]
        return torch.cat(found) if found else torch.empty(0, self.shape[1], dtype=self.dtype)


def stored_rows(folder: Path, group: str, names: Sequence[str]) -> dict[str, StoredRows]:
    """Two-dimensional tensors of a checkpoint, by name.

    Args:
        folder: One checkpoint.
        group: Of the tensors.
        names: Theirs.

    Raises:
        CheckpointError: It is missing, damaged, or lacks one of them.
    """
    stored = stored_groups(folder, open_manifest(folder, (group,)), (group,))[group]
    for name in names:
        if name not in stored:
            raise CheckpointError(
                f"{folder}: no tensor {group}/{name}; it is of another model, or damaged"
            )
    return {name: StoredRows(stored[name]) for name in names}
