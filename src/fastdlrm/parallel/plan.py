"""Which rank holds which part of which embedding table.

Invariants: the shards of a table cover each of its numbers exactly once, in ascending order; a rank
holds at most one shard of a table. A data_parallel table has no shards: every rank holds it whole;
it is D wide.

Shapes: T tables, R rows of a table, D embedding dim, d columns of a table, W world size.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

import msgspec

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import PlanError

Sharding = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]


class Shard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rectangle of one table on one rank."""

    rank: int
    """Global rank."""
    first_row: int
    num_rows: int
    """0 where a table has fewer rows than ranks share it."""
    first_column: int
    num_columns: int


class TablePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one table lies."""

    sharding: Sharding
    """table_wise: whole on one rank; row_wise, column_wise: cut; data_parallel: on every rank."""
    shards: tuple[Shard, ...] = ()
    """By ascending row or column; none for data_parallel."""


class ShardingPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where every table lies."""

    world_size: int
    """W."""
    embedding_dim: int
    """D."""
    num_embeddings: dict[str, int]
    """R by table, in the model's order."""
    tables: dict[str, TablePlan]
    """By table, in the same order."""
    table_dims: dict[str, int] = {}
    """d of the tables that are narrower than D."""

    def dim_of(self, table: str) -> int:
        """d of a table."""
        return self.table_dims.get(table, self.embedding_dim)

    @property
    def cuts_rows(self) -> bool:
        """Whether rows of one bag may lie on several ranks."""
        return any(table.sharding == "row_wise" for table in self.tables.values())

    def of_rank(self, rank: int) -> dict[str, Shard]:
        """The shard of each table that a rank holds, data_parallel tables aside."""
        return {
            name: shard
            for name, table in self.tables.items()
            for shard in table.shards
            if shard.rank == rank
        }

    def require_fit(
        self,
        num_embeddings: Mapping[str, int],
        embedding_dim: int,
        size: int,
        table_dims: Mapping[str, int] | None = None,
    ) -> None:
        """Check the plan against a model and a number of ranks.

        Args:
            num_embeddings: The model's rows by table.
            embedding_dim: The model's D.
            size: W.
            table_dims: d of the model's tables that are narrower than D.

        Raises:
            PlanError: It is of another model or world size, or does not cover a table.
        """
        if self.world_size != size:
            raise PlanError(
                f"plan: made for {self.world_size} ranks, this run has {size}; make one with "
                f"`fastdlrm plan --ranks {size}`, or leave --plan out"
            )
        if self.embedding_dim != embedding_dim:
            raise PlanError(
                f"plan: embedding_dim {self.embedding_dim}, the model's is {embedding_dim}; make "
                "a plan for this config"
            )
        if self.num_embeddings != dict(num_embeddings) or set(self.tables) != set(num_embeddings):
            differing = sorted(
                name
                for name in {*self.num_embeddings, *self.tables, *num_embeddings}
                if name not in self.tables
                or self.num_embeddings.get(name) != num_embeddings.get(name)
            )
            raise PlanError(
                f"plan: tables differ from the dataset's, {differing[0]!r} among them; make a plan "
                "for this dataset"
            )
        if self.table_dims != (table_dims or {}):
            raise PlanError(
                f"plan: table_dims {self.table_dims}, the model's are {dict(table_dims or {})}; "
                "make a plan for this config"
            )
        for name, table in self.tables.items():
            self._require_cover(name, table)

    def _require_cover(self, name: str, table: TablePlan) -> None:
        where = f"plan: table {name!r}, {table.sharding}"
        ranks = [shard.rank for shard in table.shards]
        if len(set(ranks)) != len(ranks) or not set(ranks) <= set(range(self.world_size)):
            raise PlanError(
                f"{where}: shards on ranks {ranks}; each rank from 0 to {self.world_size - 1} may "
                "hold one"
            )
        num_rows, dim = self.num_embeddings[name], self.dim_of(name)
        if table.sharding == "data_parallel" and dim < self.embedding_dim:
            raise PlanError(
                f"{where}: it has {dim} of {self.embedding_dim} columns, and only whole rows lie "
                "on every rank; choose table_wise, row_wise or column_wise"
            )
        spans = {
            "row_wise": [(s.first_row, s.num_rows) for s in table.shards],
            "column_wise": [(s.first_column, s.num_columns) for s in table.shards],
        }.get(table.sharding, [])
        whole = [(0, num_rows)], [(0, dim)]
        rows = [(s.first_row, s.num_rows) for s in table.shards]
        columns = [(s.first_column, s.num_columns) for s in table.shards]
        covers = {
            "table_wise": (rows, columns) == whole,
            "data_parallel": not table.shards,
            "row_wise": _covers(spans, num_rows) and set(columns) == {(0, dim)},
            "column_wise": _covers(spans, dim)
            and set(rows) == {(0, num_rows)}
            and all(count > 0 for _, count in columns),
        }
        if not covers[table.sharding]:
            raise PlanError(
                f"{where}: its shards are not the whole of {num_rows} rows x {dim} columns, once "
                "and in order; correct the plan, or make one with `fastdlrm plan`"
            )


def read_plan(path: Path) -> ShardingPlan:
    """Read a plan's JSON file.

    Raises:
        PlanError: It is missing, or not a plan.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ShardingPlan)
    except OSError as problem:
        raise PlanError(f"--plan {path}: {problem.strerror}; correct the path") from problem
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise PlanError(
            f"--plan {path}: not a plan: {problem}; make one with `fastdlrm plan`"
        ) from problem


def write_plan(path: Path, plan: ShardingPlan) -> None:
    """Write a plan as indented JSON, atomically."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def table_wise(num_rows: int, embedding_dim: int, rank: int) -> TablePlan:
    """A table whole on one rank."""
    shard = Shard(
        rank=rank, first_row=0, num_rows=num_rows, first_column=0, num_columns=embedding_dim
    )
    return TablePlan(sharding="table_wise", shards=(shard,))


def row_wise(num_rows: int, embedding_dim: int, ranks: Sequence[int]) -> TablePlan:
    """A table's rows in runs of nearly equal length, one a rank."""
    shards = tuple(
        Shard(
            rank=rank,
            first_row=start,
            num_rows=stop - start,
            first_column=0,
            num_columns=embedding_dim,
        )
        for rank, (start, stop) in zip(ranks, _cuts(num_rows, len(ranks)), strict=True)
    )
    return TablePlan(sharding="row_wise", shards=shards)


def column_wise(num_rows: int, embedding_dim: int, ranks: Sequence[int]) -> TablePlan:
    """A table's columns in runs of nearly equal length, one a rank; at most D ranks."""
    shards = tuple(
        Shard(
            rank=rank,
            first_row=0,
            num_rows=num_rows,
            first_column=start,
            num_columns=stop - start,
        )
        for rank, (start, stop) in zip(ranks, _cuts(embedding_dim, len(ranks)), strict=True)
    )
    return TablePlan(sharding="column_wise", shards=shards)


def data_parallel() -> TablePlan:
    """A table whole on every rank."""
    return TablePlan(sharding="data_parallel")


def round_robin(
    num_embeddings: Mapping[str, int], embedding_dim: int, world_size: int
) -> ShardingPlan:
    """Whole tables dealt out in order, one after the other: the reference's way."""
    return ShardingPlan(
        world_size=world_size,
        embedding_dim=embedding_dim,
        num_embeddings=dict(num_embeddings),
        tables={
            name: table_wise(rows, embedding_dim, i % world_size)
            for i, (name, rows) in enumerate(num_embeddings.items())
        },
    )


def _cuts(total: int, parts: int) -> list[tuple[int, int]]:
    """`total` cut into runs of nearly equal length."""
    return list(pairwise(total * i // parts for i in range(parts + 1)))


def _covers(spans: Sequence[tuple[int, int]], total: int) -> bool:
    """Whether runs (start, length) lie end to end from 0 to `total`."""
    starts = list(accumulate((length for _, length in spans), initial=0))
    lengths = [length for _, length in spans]
    return (
        [start for start, _ in spans] == starts[:-1] and starts[-1] == total and min(lengths) >= 0
    )
