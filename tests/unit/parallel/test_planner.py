"""Plans where the best is plain to see, memory that decides, and what is said where none fits."""

import msgspec
import pytest

from fastdlrm.errors import PlanError
from fastdlrm.parallel.plan import ShardingPlan, round_robin
from fastdlrm.parallel.planner import least_ranks, make_plan
from fastdlrm.parallel.prediction import predict
from fastdlrm.parallel.topology import named_topology
from fastdlrm.parallel.workload import Feature, Workload
from tests.unit.parallel.machines import machine

MIB = 2**20


def of_tables(rows: list[int], *, batch: int = 4096, ids: float = 1.0, dim: int = 32) -> Workload:
    names = [f"t{i}" for i in range(len(rows))]
    return Workload(
        num_embeddings=dict(zip(names, rows, strict=True)),
        features=tuple(Feature(table=name, ids_per_sample=ids, is_bag=ids != 1) for name in names),
        embedding_dim=dim,
        bottom_mlp=(13, 64, dim),
        top_mlp=(64, 64, 1),
        global_batch_size=batch,
        sparse_optimizer="rowwise_adagrad",
    )


def shardings(plan: ShardingPlan) -> list[str]:
    return [table.sharding for table in plan.tables.values()]


def step_s(plan: ShardingPlan, workload: Workload, topology_name: str = "h100x8") -> float:
    return predict(plan, workload, named_topology(topology_name)).step_s


def test_one_rank_holds_whole_tables() -> None:
    plan = make_plan(of_tables([1000, 10, 5]), named_topology("h100x1"), 1)
    assert shardings(plan) == ["table_wise"] * 3


def test_small_tables_are_copied_and_large_ones_are_not() -> None:
    workload = of_tables([10, 5_000_000, 10, 5_000_000], batch=65536)
    plan = make_plan(workload, named_topology("h100x2"), 2)
    assert [s == "data_parallel" for s in shardings(plan)] == [True, False, True, False]


def test_equal_tables_are_spread_evenly() -> None:
    plan = make_plan(of_tables([1_000_000] * 8), named_topology("h100x8"), 8)
    costs = predict(plan, of_tables([1_000_000] * 8), named_topology("h100x8")).ranks
    assert len({cost.table_bytes for cost in costs}) == 1


def test_one_table_larger_than_any_rank_is_cut() -> None:
    # 4 M rows of 128 B: 488 MiB on ranks of 300 MiB
    workload = of_tables([4_000_000], batch=512)
    plan = make_plan(workload, machine(memory_bytes=300 * MIB), 2)
    assert shardings(plan)[0] in ("row_wise", "column_wise")
    assert predict(plan, workload, machine()).most_bytes <= 300 * MIB


def test_a_tight_fit_is_found() -> None:
    """Tables of 6, 5, 4, 3, 3, 3 hundred thousand rows, 132 B each: 302 MiB on two ranks of 155."""
    workload = of_tables([600_000, 500_000, 400_000, 300_000, 300_000, 300_000], batch=256)
    topology = machine(memory_bytes=155 * MIB)
    assert predict(make_plan(workload, topology, 2), workload, topology).most_bytes <= 155 * MIB


def test_the_busiest_table_is_taken_from_the_rank_that_waits() -> None:
    """The order deals both heavy tables to rank 0: the planner does better."""
    workload = of_tables([1_000_000, 100_000, 1_000_000, 100_000], batch=65536, ids=50)
    dealt = round_robin(workload.num_embeddings, 32, 2)
    topology = machine(eager_us=0.0)
    plan = make_plan(workload, topology, 2)
    found, simple = (predict(p, workload, topology).step_s for p in (plan, dealt))
    assert found < simple


def test_the_device_counts_where_the_host_takes_longer() -> None:
    workload = of_tables([1_000_000, 100_000, 1_000_000, 100_000], batch=4096, ids=50)
    topology = machine(eager_us=1e6)
    plan = make_plan(workload, topology, 2)
    assert predict(plan, workload, topology).step_s == 1
    found, simple = (
        predict(p, workload, machine()).step_s
        for p in (plan, round_robin(workload.num_embeddings, 32, 2))
    )
    assert found < simple


def test_a_graph_is_worth_more_than_an_even_spread() -> None:
    """Columns under rowwise_adagrad would even out one table's work, but no graph can hold that."""
    workload = of_tables([5_000_000], batch=65536 * 8, dim=128)
    free = msgspec.structs.replace(named_topology("h100x8"), eager_us=0.0)
    assert shardings(make_plan(workload, free, 8)) == ["column_wise"]
    bound = msgspec.structs.replace(free, eager_us=1e5)
    assert shardings(make_plan(workload, bound, 8)) != ["column_wise"]


def test_the_same_plan_every_time() -> None:
    workload = of_tables([10 ** (k % 7 + 1) for k in range(26)], batch=8192, ids=3)
    plans = [make_plan(workload, named_topology("h100x8"), 8) for _ in range(2)]
    assert plans[0] == plans[1]


def test_fewest_ranks() -> None:
    # 4 M rows of 132 B are 504 MiB
    workload = of_tables([4_000_000], batch=512)
    assert least_ranks(workload, machine(memory_bytes=600 * MIB), 8) == 1
    assert least_ranks(workload, machine(memory_bytes=300 * MIB), 8) == 2
    assert least_ranks(workload, machine(memory_bytes=130 * MIB), 8) == 4
    assert least_ranks(workload, machine(memory_bytes=20 * MIB), 8) is None


def test_what_fits_nowhere_is_refused_rank_by_rank() -> None:
    workload = of_tables([4_000_000], batch=512)
    topology = machine(memory_bytes=300 * MIB, num_ranks=4)
    with pytest.raises(PlanError) as caught:
        make_plan(workload, topology, 1)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("plan: 1 ranks of 0.29 GiB cannot hold the tables and what a step")
    assert "take 2 ranks or more" in lines[0]
    assert len(lines) == 2
    # 4 M rows of 132 B are 504 MiB
    assert lines[1].startswith("  rank 0: 0.49 GiB (too much)")


def test_no_number_of_ranks_is_enough() -> None:
    message = r"no number of ranks up to 4 is enough: lower model.embedding_dim(.|\n)*rank 3: "
    with pytest.raises(PlanError, match=message):
        make_plan(of_tables([4_000_000]), machine(memory_bytes=MIB, num_ranks=4), 4)


def test_more_ranks_than_there_are() -> None:
    message = r"plan: 16 ranks are asked for, topology 'h100x8' has 8; name a larger one"
    with pytest.raises(PlanError, match=message):
        make_plan(of_tables([10]), named_topology("h100x8"), 16)


@pytest.mark.slow
def test_a_thousand_tables_on_64_ranks() -> None:
    workload = of_tables([10 ** (k % 7 + 1) for k in range(1000)], batch=2**17, ids=3)
    plan = make_plan(workload, named_topology("h100x64"), 64)
    dealt = round_robin(workload.num_embeddings, 32, 64)
    assert step_s(plan, workload, "h100x64") < 0.7 * step_s(dealt, workload, "h100x64")
