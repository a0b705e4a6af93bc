"""What a model asks of its tables, and the pooled vectors of one batch before they are read.

Shapes: B batch, F sparse features, D embedding dim.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.model.config import Init
from fastdlrm.model.embedding import Draw


class RowSource(NamedTuple):
    """Pooled vectors as rows of a larger tensor, so that a kernel can read them where they lie.

    Attributes:
        weight: Shape (R, D).
        rows: Row of each vector, feature by feature, shape (F * B,), int32 or int64.
        scatter: Whether their gradient is to be laid out as `weight`, zeros in all other rows,
            instead of (B, F, D); no row is then read twice.
    """

    weight: Tensor
    rows: Tensor
    scatter: bool


class Lookup(Protocol):
    """A batch that has been looked up, or is on its way; whoever asks for the vectors waits."""

    def pooled(self, dtype: torch.dtype) -> Tensor:
        """The pooled vectors, shape (B, F, D), outside autograd."""
        ...

    def source(self) -> RowSource | None:
        """Where the pooled vectors can be read row by row; None where they cannot."""
        ...


class Tables(Protocol):
    """The embedding tables of a model: in this process, or spread over ranks."""

    @property
    def num_embeddings(self) -> Mapping[str, int]:
        """Rows by table, in order."""
        ...

    def __call__(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        """Look up and pool a batch, shape (B, F, D)."""
        ...

    def initialise(
        self,
        init: Init,
        generator: torch.Generator,
        std: float = 0.01,
        draws: Mapping[str, Draw] | None = None,
    ) -> None:
        """Draw all numbers, table by table: of its own rows, or as `draws` says."""
        ...

    def state_tensors(self) -> dict[str, Any]:
        """By table, the live numbers that this process holds."""
        ...

    def pooling_weights(self) -> dict[str, Any]:
        """By table, the learned pooling weights that this process holds, live; none: all are 1."""
        ...
