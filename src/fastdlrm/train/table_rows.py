"""The vectors of a table's ids, as a checkpoint holds them and as they were before training.

Shapes: R ids of a table, D embedding dim, n ids of a run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdlrm.checkpoint.rows import StoredRows
from fastdlrm.model.composition import Composition
from fastdlrm.model.embedding import Draw, draw_, drawn_rows
from fastdlrm.train.run import Run


class Rows(Protocol):
    """Vectors of a table's ids."""

    @property
    def shape(self) -> tuple[int, int]:
        """(R, D)."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Those of some ids, shape (stop - start, D)."""
        ...

    def gather(self, rows: Sequence[int]) -> Tensor:
        """Those of single ids, shape (len(rows), D)."""
        ...


@dataclass(frozen=True, slots=True)
class ComposedRows:
    """Vectors that are made of several smaller tables' in memory.

    Attributes:
        composition: How.
        num_rows: R.
        parts: The smaller tables, by name.
    """

    composition: Composition
    num_rows: int
    parts: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """(R, D)."""
        width = next(iter(self.parts.values())).shape[1]
        return self.num_rows, width * self.composition.num_pieces

    def read(self, start: int, stop: int) -> Tensor:
        """Vectors of some ids, float32."""
        return self._composed(torch.arange(start, stop))

    def gather(self, rows: Sequence[int]) -> Tensor:
        """Vectors of single ids, float32."""
        return self._composed(torch.tensor(rows, dtype=torch.int64))

    def _composed(self, ids: Tensor) -> Tensor:
        composition, dim = self.composition, self.shape[1]
        named = zip(composition.parts, composition.ids(ids), strict=True)
        vectors = [self.parts[part][of_part].float() for part, of_part in named]
        # as tables of fewer columns are looked up: with zeros behind
        return composition.join([pad(each, (0, dim - each.shape[1])) for each in vectors])


def rows_of(composition: Composition, num_rows: int, stored: Mapping[str, StoredRows]) -> Rows:
    """The vectors of a table in a checkpoint; the parts of a compressed one are read.

    Args:
        composition: How the table is held.
        num_rows: R.
        stored: The tables it is held in, by name.
    """
    if _is_plain(composition):
        return stored[composition.parts[0]]
    whole = {part: rows.read(0, rows.shape[0]) for part, rows in stored.items()}
    return ComposedRows(composition, num_rows, whole)


def _is_plain(composition: Composition) -> bool:
    return len(composition.parts) == 1 and not composition.draws


class Drawn:
    """The numbers that a run's tables began with, drawn again in the very order.

    Args:
        run: Whose tables; each is asked for once, in the model's order.
    """

    def __init__(self, run: Run) -> None:
        self._config = run.recipe.model
        self._generator = torch.Generator().manual_seed(run.recipe.seed)

    def runs(
        self, composition: Composition, num_rows: int, stored: Mapping[str, StoredRows]
    ) -> Iterator[tuple[int, Tensor]]:
        """Runs of the next table's ids: where each starts, and its vectors, shape (n, D).

        Args:
            composition: How the table is held.
            num_rows: R.
            stored: The tables it is held in, of the checkpoint, by name.
        """
        if _is_plain(composition):
            ((part, rows),) = stored.items()
            yield from self._table(composition, part, rows)
            return
        whole = {}
        for part, rows in stored.items():
            values = [values for _, values in self._table(composition, part, rows)]
            whole[part] = torch.cat(values)
        drawn = ComposedRows(composition, num_rows, whole)
        for start, stop in drawn_rows(*drawn.shape):
            yield start, drawn.read(start, stop)

    def _table(
        self, composition: Composition, name: str, stored: StoredRows
    ) -> Iterator[tuple[int, Tensor]]:
        """Runs of the rows of the next table in memory."""
        config, (num_rows, dim) = self._config, stored.shape
        how = composition.draws.get(name, Draw(num_rows))
        for start, stop in drawn_rows(num_rows, dim):
            values = torch.empty(stop - start, dim, dtype=stored.dtype)
            draw_(values, how, config.init, self._generator, config.embedding_std)
            yield start, values
