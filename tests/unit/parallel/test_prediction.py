"""What `predict` says of two ranks, beside sums worked by hand in test_cost.py."""

import msgspec
import pytest

from fastdlrm.parallel.plan import ShardingPlan, data_parallel, round_robin, table_wise
from fastdlrm.parallel.prediction import compare, predict
from tests.unit.parallel.machines import MACHINE, WORKLOAD, machine

PLAN = round_robin(WORKLOAD.num_embeddings, WORKLOAD.embedding_dim, 2)


def test_ranks_and_totals() -> None:
    found = predict(PLAN, WORKLOAD, MACHINE)
    first, second = found.ranks
    assert (first.rank, first.num_shards, first.table_bytes, first.lookups) == (0, 1, 128, 4)
    assert (second.table_bytes, second.lookups) == (64, 8)
    assert found.step_s == second.step_s > first.step_s
    assert found.samples_per_s == pytest.approx(4 / found.step_s)
    # ids 17, vectors 21 twice, top 12, rest 17 ns
    assert found.communication_s == pytest.approx(88e-9)
    # all of it hides behind the bottom MLP and the update
    assert found.communication_share == 0
    for rank in found.ranks:
        parts = (rank.table_bytes, rank.state_bytes, rank.dense_bytes, rank.activation_bytes)
        assert rank.total_bytes == pytest.approx(sum(parts) + rank.buffer_bytes, abs=2)
    assert found.most_bytes == max(rank.total_bytes for rank in found.ranks)


def test_communication_that_does_not_hide() -> None:
    """ids and vectors 5 us each: the forward pass waits for both, the backward for one and more."""
    slow = machine(latency_us=5.0)
    silent = machine(latency_us=0.0, exchange_gb_s=1e12, reduce_gb_s=1e12)
    found, alone = (predict(PLAN, WORKLOAD, m) for m in (slow, silent))
    assert found.communication_share == pytest.approx(1 - alone.step_s / found.step_s)
    assert found.communication_share > 0.9


def test_a_copied_table_is_on_every_rank_and_no_shard() -> None:
    tables = {"a": table_wise(8, 4, 0), "b": data_parallel()}
    plan = ShardingPlan(
        world_size=2, embedding_dim=4, num_embeddings=WORKLOAD.num_embeddings, tables=tables
    )
    first, second = predict(plan, WORKLOAD, MACHINE).ranks
    assert (first.num_shards, second.num_shards) == (1, 0)
    assert (first.table_bytes, second.table_bytes) == (128 + 64, 64)
    # its dense gradient is held beside the MLPs' parameters and gradients
    assert second.dense_bytes == 19 * 8 + 64


def test_predicted_against_actual() -> None:
    found = msgspec.structs.replace(
        predict(PLAN, WORKLOAD, MACHINE),
        global_batch_size=1000,
        step_s=0.002,
        samples_per_s=500_000.0,
    )
    ranks = tuple(msgspec.structs.replace(rank, total_bytes=2**30) for rank in found.ranks)
    found = msgspec.structs.replace(found, ranks=ranks)
    # 1000 samples at 400,000 a second: 2.5 ms, a quarter more
    assert compare(found, 400_000, 3 * 2**29) == (
        "a step: predicted 2.000 ms (rates of round), measured 2.500 ms (+25%); samples/s: "
        "predicted 500,000, measured 400,000\n"
        "memory of the fullest rank: predicted 1.00 GiB, measured 1.50 GiB (+50%)"
    )
    assert "memory" not in compare(found, 400_000)
