"""Plans by hand: what covers a table, what does not, and how a plan lies on disk."""

from pathlib import Path

import msgspec
import pytest

from fastdlrm.errors import PlanError
from fastdlrm.parallel.plan import (
    Shard,
    ShardingPlan,
    TablePlan,
    column_wise,
    data_parallel,
    read_plan,
    round_robin,
    row_wise,
    table_wise,
    write_plan,
)

ROWS = {"a": 10, "b": 3}


def shard(rank: int, rows: tuple[int, int], columns: tuple[int, int]) -> Shard:
    return Shard(
        rank=rank,
        first_row=rows[0],
        num_rows=rows[1],
        first_column=columns[0],
        num_columns=columns[1],
    )


def plan_of(a: TablePlan, b: TablePlan | None = None) -> ShardingPlan:
    tables = {"a": a, "b": data_parallel() if b is None else b}
    return ShardingPlan(world_size=4, embedding_dim=8, num_embeddings=ROWS, tables=tables)


def test_rows_and_columns_are_cut_evenly() -> None:
    # 10 rows over 4: edges 0, 2, 5, 7, 10; 8 columns over 3: edges 0, 2, 5, 8
    assert row_wise(10, 8, [3, 1, 0, 2]).shards == (
        shard(3, (0, 2), (0, 8)),
        shard(1, (2, 3), (0, 8)),
        shard(0, (5, 2), (0, 8)),
        shard(2, (7, 3), (0, 8)),
    )
    assert column_wise(10, 8, [2, 0, 1]).shards == (
        shard(2, (0, 10), (0, 2)),
        shard(0, (0, 10), (2, 3)),
        shard(1, (0, 10), (5, 3)),
    )
    # fewer rows than ranks: one has none
    assert [s.num_rows for s in row_wise(3, 8, [0, 1, 2, 3]).shards] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    "table",
    [
        table_wise(10, 8, 3),
        row_wise(10, 8, [0, 1, 2, 3]),
        row_wise(10, 8, [2]),
        column_wise(10, 8, [3, 1]),
        data_parallel(),
    ],
)
def test_what_covers_a_table_fits(table: TablePlan) -> None:
    plan_of(table, row_wise(3, 8, [0, 1, 2, 3])).require_fit(ROWS, 8, 4)


def test_tables_are_dealt_out_in_turn() -> None:
    plan = round_robin({"a": 10, "b": 3, "c": 5}, 8, 2)
    assert [plan.tables[name].shards[0].rank for name in "abc"] == [0, 1, 0]
    assert plan.of_rank(0) == {"a": shard(0, (0, 10), (0, 8)), "c": shard(0, (0, 5), (0, 8))}
    plan.require_fit({"a": 10, "b": 3, "c": 5}, 8, 2)


def test_narrow_tables() -> None:
    """a is 5 columns wide of 8, b is not."""
    narrow = {"a": 5}

    def narrow_plan(a: TablePlan) -> ShardingPlan:
        return msgspec.structs.replace(plan_of(a), table_dims=narrow)

    for table in (table_wise(10, 5, 1), row_wise(10, 5, [0, 1]), column_wise(10, 5, [1, 0])):
        plan = narrow_plan(table)
        plan.require_fit(ROWS, 8, 4, narrow)
        assert (plan.dim_of("a"), plan.dim_of("b")) == (5, 8)
    with pytest.raises(PlanError, match=r"not the whole of 10 rows x 5 columns"):
        narrow_plan(table_wise(10, 8, 1)).require_fit(ROWS, 8, 4, narrow)
    with pytest.raises(PlanError, match=r"table_dims \{'a': 5\}, the model's are \{\}; make a"):
        narrow_plan(table_wise(10, 5, 1)).require_fit(ROWS, 8, 4)
    with pytest.raises(PlanError, match=r"'a', data_parallel: it has 5 of 8 columns, and only"):
        narrow_plan(data_parallel()).require_fit(ROWS, 8, 4, narrow)


def test_another_number_of_ranks() -> None:
    with pytest.raises(PlanError, match=r"made for 4 ranks, this run has 2; make one with"):
        plan_of(data_parallel()).require_fit(ROWS, 8, 2)


def test_another_dim() -> None:
    with pytest.raises(PlanError, match=r"embedding_dim 8, the model's is 16; make a plan"):
        plan_of(data_parallel()).require_fit(ROWS, 16, 4)


@pytest.mark.parametrize("rows", [{"a": 10, "b": 4}, {"a": 10}, {"a": 10, "b": 3, "c": 1}])
def test_other_tables(rows: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=r"tables differ from the dataset's, '[bc]' among them"):
        plan_of(data_parallel()).require_fit(rows, 8, 4)


def test_a_table_without_a_placement() -> None:
    plan = msgspec.structs.replace(plan_of(data_parallel()), tables={"a": data_parallel()})
    with pytest.raises(PlanError, match="'b' among them"):
        plan.require_fit(ROWS, 8, 4)


@pytest.mark.parametrize("ranks", [(0, 0), (0, 4), (-1, 0)])
def test_a_rank_twice_or_beyond_the_world(ranks: tuple[int, int]) -> None:
    message = r"table 'a', row_wise: shards on ranks \[.*\]; each rank from 0 to 3 may hold one"
    with pytest.raises(PlanError, match=message):
        plan_of(row_wise(10, 8, ranks)).require_fit(ROWS, 8, 4)


@pytest.mark.parametrize(
    ("sharding", "shards"),
    [
        ("table_wise", ()),
        ("table_wise", (shard(0, (0, 9), (0, 8)),)),
        ("table_wise", (shard(0, (0, 5), (0, 8)), shard(1, (5, 5), (0, 8)))),
        ("row_wise", ()),
        ("row_wise", (shard(0, (0, 5), (0, 8)), shard(1, (6, 4), (0, 8)))),  # a gap
        ("row_wise", (shard(0, (0, 5), (0, 8)), shard(1, (4, 6), (0, 8)))),  # twice
        ("row_wise", (shard(0, (5, 5), (0, 8)), shard(1, (0, 5), (0, 8)))),  # not in order
        ("row_wise", (shard(0, (0, 5), (0, 8)), shard(1, (5, 4), (0, 8)))),  # too short
        ("row_wise", (shard(0, (0, 5), (0, 8)), shard(1, (5, 5), (0, 4)))),  # half the columns
        ("row_wise", (shard(0, (0, 11), (0, 8)), shard(1, (11, -1), (0, 8)))),
        ("column_wise", (shard(0, (0, 10), (0, 4)), shard(1, (0, 10), (4, 3)))),
        ("column_wise", (shard(0, (0, 10), (0, 8)), shard(1, (0, 10), (8, 0)))),  # no column
        ("column_wise", (shard(0, (0, 10), (0, 4)), shard(1, (0, 9), (4, 4)))),
        ("data_parallel", (shard(0, (0, 10), (0, 8)),)),
    ],
)
def test_what_does_not_cover_a_table(sharding: str, shards: tuple[Shard, ...]) -> None:
    table = TablePlan(sharding=sharding, shards=shards)
    message = rf"table 'a', {sharding}: its shards are not the whole of 10 rows x 8 columns"
    with pytest.raises(PlanError, match=message):
        plan_of(table).require_fit(ROWS, 8, 4)


def test_a_plan_survives_the_disk(tmp_path: Path) -> None:
    plan = plan_of(row_wise(10, 8, [3, 1, 0, 2]), column_wise(3, 8, [1, 2]))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"--plan .*none.json: No such file.*; correct the path"):
        read_plan(tmp_path / "none.json")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b'{"world_size": 2}', b'{"world_size": "two"}']
)
def test_not_a_plan(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan.json: not a plan: .*make one with `fastdlrm plan`"):
        read_plan(path)


def test_a_field_that_plans_do_not_have(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, plan_of(data_parallel()))
    path.write_text(path.read_text().replace('"world_size"', '"size": 1, "world_size"'))
    with pytest.raises(PlanError, match="not a plan: Object contains unknown field `size`"):
        read_plan(path)
