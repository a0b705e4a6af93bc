"""Any plan the planner makes is whole, fits, and is no worse than the simple ones that fit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.errors import PlanError
from fastdlrm.parallel.plan import (
    ShardingPlan,
    TablePlan,
    column_wise,
    data_parallel,
    row_wise,
    table_wise,
)
from fastdlrm.parallel.planner import make_plan
from fastdlrm.parallel.prediction import predict
from fastdlrm.parallel.topology import Topology
from fastdlrm.parallel.workload import Feature, Interaction, Workload
from tests.unit.parallel.machines import machine

DIM = 32


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    rows = draw(st.lists(st.integers(1, 300_000), min_size=1, max_size=8))
    names = [f"t{i}" for i in range(len(rows))]
    features = []
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=12)):
        ids = draw(st.sampled_from((1.0, 2.5, 40.0)))
        shares = draw(st.sampled_from(((), (0.5, 0.3, 0.2), (0.1,) * 10)))
        features.append(Feature(table=name, ids_per_sample=ids, is_bag=ids != 1, shares=shares))
    narrow = draw(st.dictionaries(st.sampled_from(names), st.sampled_from((1, 5, 16)), max_size=3))
    return Workload(
        table_dims=narrow,
        num_embeddings=dict(zip(names, rows, strict=True)),
        features=tuple(features),
        embedding_dim=DIM,
        bottom_mlp=draw(st.sampled_from(((), (13, 64, DIM)))),
        top_mlp=(64, 64, 1),
        interaction=Interaction(flop=1000.0, num_parameters=100, num_kept=50),
        global_batch_size=draw(st.integers(1, 5000)),
        precision=draw(st.sampled_from(("fp32", "bf16"))),
        sparse_optimizer=draw(st.sampled_from(("sgd", "rowwise_adagrad", "adam"))),
    )


@st.composite
def machines(draw: st.DrawFn) -> Topology:
    return machine(
        memory_bytes=draw(st.sampled_from((2**24, 2**26, 2**40))),
        ranks_per_node=draw(st.sampled_from((2, 8))),
        latency_us=draw(st.sampled_from((0.0, 20.0))),
        exchange_gb_s=draw(st.sampled_from((0.1, 300.0))),
        num_ranks=8,
    )


@given(workloads(), machines(), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_plans_are_whole_and_fit_and_are_no_worse(
    workload: Workload, topology: Topology, world_size: int
) -> None:
    simple = simple_plans(workload, world_size)
    costs = [predict(plan, workload, topology) for plan in simple]
    fitting = [cost for cost in costs if cost.most_bytes <= topology.memory_bytes]
    try:
        plan = make_plan(workload, topology, world_size)
    except PlanError:
        assert not fitting
        return
    plan.require_fit(workload.num_embeddings, DIM, world_size, workload.table_dims)
    found = predict(plan, workload, topology)
    assert found.most_bytes <= topology.memory_bytes
    for cost in fitting:
        assert found.step_s <= cost.step_s * (1 + 1e-5)


def simple_plans(workload: Workload, world_size: int) -> list[ShardingPlan]:
    """Dealt out in turn, and each way of cutting all tables."""
    rows = workload.num_embeddings
    dims = {name: workload.dim_of(name) for name in rows}
    ranks = range(world_size)

    def all_by(cut: dict[str, TablePlan]) -> ShardingPlan:
        return ShardingPlan(
            world_size=world_size,
            embedding_dim=DIM,
            num_embeddings=rows,
            tables=cut,
            table_dims=workload.table_dims,
        )

    dealt = {
        name: table_wise(R, dims[name], i % world_size) for i, (name, R) in enumerate(rows.items())
    }
    plans = [all_by(dealt)]
    if world_size in (2, 4, 8):
        if all(world_size <= R for R in rows.values()):
            by_rows = {name: row_wise(R, dims[name], ranks) for name, R in rows.items()}
            plans.append(all_by(by_rows))
        if all(dim % world_size == 0 and dim // world_size >= 8 for dim in dims.values()):
            by_columns = {name: column_wise(R, dims[name], ranks) for name, R in rows.items()}
            plans.append(all_by(by_columns))
    if world_size > 1 and not workload.table_dims:
        plans.append(all_by({name: data_parallel() for name in rows}))
    return plans
