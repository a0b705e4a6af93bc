"""The embedding tables of a model, stacked in one tensor, and the lookup of a batch in them.

Invariants: row r of table t is row `start of t` + r of the stack; tables lie in the order given;
ids are trusted to be below their table's num_embeddings.

Shapes: B batch, F sparse features, D embedding dim, L ids in the batch, R rows of all tables.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.cpu.pages import advise_large_pages
from fastdlrm.kernels.lookup import pooled_lookup, stack_rows
from fastdlrm.model.config import Init
from fastdlrm.model.pooling import TablePooling, rule_and_means, with_shares

INT32_ROWS = 2**31 - 1
"""Most rows of a stack whose rows are counted in int32, which sorts and loads faster."""
DRAWN_NUMBERS = 1 << 22
"""Numbers of a table drawn at a time where no process is to hold a whole one."""
FOLDED_ROWS = 1 << 16
"""Rows that are multiplied by their pooling weights at a time."""


class Draw(NamedTuple):
    """How a table is drawn.

    Attributes:
        num_rows: Of the table whose vectors are wanted: itself, or one that it is a part of.
        num_summed: Vectors that are added up to one of that table; each has its share of the
            variance.
        are_signs: Whether each number is 1 or -1, as likely: a factor of that table's.
    """

    num_rows: int
    num_summed: int = 1
    are_signs: bool = False


class StackedTables(nn.Module):
    """Where the rows of T tables of one embedding dim lie in a stack, whatever a row is made of.

    Several features may share a table.

    Attributes:
        num_embeddings: Rows by table, in stack order.
        num_rows: Of all tables.
        pooling: What a lookup of `weighted` batches takes of the rows of a bag.
        weight: All rows, R of them.
        embedding_dim: D.
    """

    feature_starts: Tensor
    weight: Tensor
    embedding_dim: int
    _takes_mean: Tensor | None

    def __init__(
        self,
        num_embeddings: Mapping[str, int],
        feature_tables: Sequence[str],
        *,
        pooling: TablePooling = "sum",
        device: torch.device | str = "cpu",
    ) -> None:
        """Lay out the tables.

        Args:
            num_embeddings: Rows by table.
            feature_tables: The table of each sparse feature, in the batch's order.
            pooling: How the rows of a bag become one vector.
            device: Where the stack lies.
        """
        super().__init__()
        self.num_embeddings = dict(num_embeddings)
        self.pooling, takes_mean = rule_and_means(pooling, feature_tables)
        if takes_mean is not None:
            takes_mean = takes_mean.to(device)
        self.register_buffer("_takes_mean", takes_mean, persistent=False)
        edges = accumulate(self.num_embeddings.values(), initial=0)
        self._starts = dict(zip(self.num_embeddings, edges, strict=False))
        used = [self._starts[table] for table in feature_tables]
        self._are_ascending = len(used) > 0 and all(a < b for a, b in pairwise(used))
        self.num_rows = sum(self.num_embeddings.values())
        starts = torch.tensor(
            used,
            dtype=torch.int32 if self.num_rows <= INT32_ROWS else torch.int64,
        )
        self.register_buffer("feature_starts", starts.to(device), persistent=False)

    def compute_on(self, device: torch.device | str) -> None:
        """Take batches on a device that reads the stack from afar."""
        self.feature_starts = self.feature_starts.to(device)
        if self._takes_mean is not None:
            self._takes_mean = self._takes_mean.to(device)

    def initialise(
        self,
        init: Init,
        generator: torch.Generator,
        std: float = 0.01,
        draws: Mapping[str, Draw] | None = None,
    ) -> None:
        """Draw the tables one by one, in order, so that stacking does not change the numbers.

        Args:
            init: reference: U(+-sqrt(1 / rows)); normal: N(0, std^2).
            generator: On any device; a table is drawn there and copied to where it lies, so one
                seed gives the same tables on every device.
            std: Of "normal".
            draws: By table, where it is not drawn by its own rows.
        """
        draws = draws or {}
        for name, rows in self.num_embeddings.items():
            self.draw(name, draws.get(name, Draw(rows)), init, generator, std)

    def draw(
        self, name: str, how: Draw, init: Init, generator: torch.Generator, std: float
    ) -> None:
        """Draw one table; see `initialise`."""
        raise NotImplementedError

    def state_tensors(self) -> dict[str, Tensor]:
        """Each table's rows by name, as they are stored, live."""
        return {name: self.table(name) for name in self.num_embeddings}

    def pooling_weights(self) -> dict[str, Tensor]:
        """The learned pooling weights of each table by name, live; none where none are learned."""
        return {}

    def table(self, name: str) -> Tensor:
        """A table as a view of the stack, outside autograd."""
        return self.of_table(name, self.weight.detach())

    def of_table(self, name: str, stacked: Tensor) -> Tensor:
        """A table's part of any tensor whose first dimension is R, as a view."""
        start = self._starts[name]
        return stacked[start : start + self.num_embeddings[name]]

    def rows(self, sparse: SparseBatch) -> Tensor:
        """Row in the stack of each id of a batch, shape (L,), int32 where R allows."""
        return stack_rows(sparse.ids, sparse.lengths, self.feature_starts)

    def weighted(self, sparse: SparseBatch) -> SparseBatch:
        """A batch as it is looked up by the one rule `pooling`."""
        return with_shares(sparse, self._takes_mean)

    def by_sample(self, pooled: Tensor, sparse: SparseBatch) -> Tensor:
        """What was pooled bag by bag, shape (F * B, D), as (B, F, D), a view.

        Reading feature by feature keeps a small table in the cache, and the interaction copies its
        input in any case.
        """
        F, B = len(self.feature_starts), sparse.num_samples
        return pooled.view(F, B, pooled.shape[1]).transpose(0, 1)


class EmbeddingTables(StackedTables):
    """Tables of floating-point rows, which can be trained.

    Attributes:
        weight: All tables, shape (R, D); uninitialised until `initialise`.
        embedding_dim: D.
        pooling_weight: What each row is multiplied by in every bag, shape (R,); None for all ones.
    """

    pooling_weight: nn.Parameter | None

    def __init__(
        self,
        num_embeddings: Mapping[str, int],
        feature_tables: Sequence[str],
        *,
        embedding_dim: int,
        pooling: TablePooling = "sum",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        pin: bool = False,
        stack: Tensor | None = None,
    ) -> None:
        """Allocate the stack.

        Args:
            num_embeddings: Rows by table.
            feature_tables: The table of each sparse feature, in the batch's order.
            embedding_dim: D.
            pooling: How the rows of a bag become one vector.
            dtype: Of the rows.
            device: Where the rows lie.
            pin: Whether they are page-locked, so that a GPU's kernels can read them from afar.
            stack: The rows of all tables where they lie already, shape (R, D); `dtype`, `device`
                and `pin` are then its own.
        """
        where = device if stack is None else stack.device
        super().__init__(num_embeddings, feature_tables, pooling=pooling, device=where)
        if stack is None:
            shape = self.num_rows, embedding_dim
            stack = torch.empty(shape, dtype=dtype, device=device, pin_memory=pin)
            advise_large_pages(stack)
        self.weight = nn.Parameter(stack)
        self.embedding_dim = embedding_dim
        self.register_parameter("pooling_weight", None)

    def learn_weights(self) -> None:
        """Give each row a pooling weight, 1 at first; float32 for rows of 16 bits too."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        ones = torch.ones(self.num_rows, dtype=dtype, device=self.weight.device)
        self.pooling_weight = nn.Parameter(ones)

    @torch.no_grad()
    def fold_weights(self) -> None:
        """Multiply each row by its pooling weight, rounded to the rows' type; none is left.

        Some rows at a time: no second copy of the tables is made.
        """
        if self.pooling_weight is None:
            return
        weights = self.pooling_weight.split(FOLDED_ROWS)
        for rows, weight in zip(self.weight.split(FOLDED_ROWS), weights, strict=True):
            rows.mul_(weight.unsqueeze(1))
        self.pooling_weight = None

    @torch.no_grad()
    def draw(
        self, name: str, how: Draw, init: Init, generator: torch.Generator, std: float
    ) -> None:
        """See `StackedTables.draw`."""
        table = self.table(name)
        is_there = table.device.type == generator.device.type
        drawn = table if is_there else torch.empty_like(table, device=generator.device)
        draw_(drawn, how, init, generator, std)
        if not is_there:
            table.copy_(drawn)

    def pooling_weights(self) -> dict[str, Tensor]:
        """See `StackedTables`."""
        if self.pooling_weight is None:
            return {}
        stacked = self.pooling_weight.detach()
        return {name: self.of_table(name, stacked) for name in self.num_embeddings}

    def segments(self, sparse: SparseBatch, offsets: Tensor | None) -> Tensor | None:
        """Where each feature's ids begin in a batch, and the end, shape (F + 1,), int64.

        Args:
            sparse: The batch.
            offsets: Of its bags, where they are not all of one id.

        Returns:
            None where the rows of a feature may be above those of a later one.
        """
        if not self._are_ascending:
            return None
        B = max(sparse.num_samples, 1)
        if offsets is not None:
            return offsets[::B]
        return torch.arange(0, len(sparse.ids) + 1, B)

    def forward(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        """Look up and pool a batch.

        Args:
            sparse: F features of B samples.
            dtype: Of the result; None: the tables'.

        Returns:
            Shape (B, F, D), a view of (F, B, D).
        """
        return self.pool(sparse, self.rows(sparse), dtype)

    def pool(self, sparse: SparseBatch, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """As `forward`, with the batch's `rows` at hand."""
        offsets = None if sparse.lengths is None else sparse.offsets()
        weights = self.weighted(sparse).weights
        if self.pooling_weight is not None:
            learned = self.pooling_weight.index_select(0, rows)
            weights = learned if weights is None else weights * learned
        pooled = pooled_lookup(self.weight, rows, offsets, weights, self.pooling, dtype)
        return self.by_sample(pooled, sparse)


@torch.no_grad()
def draw_(values: Tensor, how: Draw, init: Init, generator: torch.Generator, std: float) -> None:
    """Fill a table, or a run of its rows, with the numbers it begins with.

    Args:
        values: Shape (n, D), on the generator's device.
        how: Of the whole table.
        init: reference: U(+-sqrt(1 / rows)); normal: N(0, std^2).
        generator: Draws row by row.
        std: Of "normal".
    """
    if how.are_signs:
        values.uniform_(-1, 1, generator=generator)
        values.copy_(torch.where(values < 0, -1.0, 1.0))
    elif init == "reference":
        bound = math.sqrt(1 / (how.num_rows * how.num_summed))
        values.uniform_(-bound, bound, generator=generator)
    else:
        values.normal_(0, std / math.sqrt(how.num_summed), generator=generator)


def drawn_rows(num_rows: int, dim: int) -> Iterator[tuple[int, int]]:
    """Runs of rows that hold a multiple of 16 numbers, the last one at least 16 if there are more.

    Torch draws normal numbers in blocks of 16: such runs get the numbers of one draw.
    """
    step = max(16, DRAWN_NUMBERS // dim // 16 * 16)
    num_runs = max(1, math.ceil(num_rows / step))
    edges = [min(i * step, num_rows) for i in range(num_runs + 1)]
    if num_runs > 1 and (edges[-1] - edges[-2]) * dim < 16:
        del edges[-2]
    yield from pairwise(edges)
