"""Compressed tables on two ranks, bags of them too."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.data.order import rank_slice
from fastdlrm.model.compressed import CompressedTables
from fastdlrm.parallel.plan import ShardingPlan, column_wise, data_parallel, row_wise, table_wise
from fastdlrm.parallel.sharded import ShardedTables
from fastdlrm.parallel.world import World
from fastdlrm.train.step import TrainStep
from tests.compression import make_compressed
from tests.dist.ranks import Ranks
from tests.dist.training import own_part, whole
from tests.training import DIM, FEATURES, TABLES, bags, make_config, make_model, single_ids, take

KINDS = ({"a": "mult", "b": "hash"}, {"a": "concat", "b": "plain"})
BATCHES = {
    "single": lambda: [single_ids(k) for k in range(3)],
    # the last batch leaves a rank without samples
    "bags": lambda: [bags(1, is_weighted=True), bags(2, is_weighted=True, num_samples=31)]
    + [bags(3, is_weighted=True, num_samples=1)],
}


def train(given: list[Batch], kinds: Mapping[str, str]) -> tuple[Tensor, dict[str, object], Tensor]:
    """On one rank: losses, tables, and vectors of the last batch."""
    with World.of_environment() as world:
        alone, made = make_compressed(TABLES, FEATURES, kinds, DIM, "mean")
        rows, compression = dict(alone.num_embeddings), alone.compression
        every, dim = range(world.size), DIM // made["a"].num_pieces
        last = list(rows)[-1]
        tables = {
            "a.quotient": row_wise(rows["a.quotient"], dim, every),
            "a.remainder": data_parallel() if dim == DIM else table_wise(3, dim, 0),
            last: column_wise(rows[last], DIM, every),
        }
        plan = ShardingPlan(
            world_size=world.size,
            embedding_dim=DIM,
            num_embeddings=rows,
            tables=tables,
            table_dims={name: dim for name in made["a"].num_embeddings if dim < DIM},
        )
        parts = [part for feature in FEATURES for part in made[feature].parts]
        sharded = ShardedTables(plan, parts, world, pooling="mean")
        model = make_model(tables=CompressedTables(sharded, compression))
        step = TrainStep(model, make_config("adagrad", "adagrad"), world)
        losses = []
        for k, batch in enumerate(given):
            own = own_part(batch, *rank_slice(batch.num_samples, world.rank, world.size))
            losses.append(float(step(own, k, batch.num_samples)))
        vectors = model.tables(own.sparse).detach().clone()
        step.close()
        return torch.tensor(losses), model.tables.state_tensors(), vectors


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("kind", BATCHES)
def test_two_ranks_learn_what_one_does(
    kind: str, kinds: Mapping[str, str], ranks: Ranks
) -> None:
    given = BATCHES[kind]()
    tables, _ = make_compressed(TABLES, FEATURES, kinds, DIM, "mean")
    model = make_model(tables=tables)
    expected = take(TrainStep(model, make_config("adagrad", "adagrad")), given)
    of_ranks = ranks.run(train, 2, given, kinds)
    losses, states, vectors = zip(*of_ranks, strict=True)
    torch.testing.assert_close(sum(losses), expected, atol=1e-5, rtol=1e-5)
    found = whole(states)
    for name, table in tables.state_tensors().items():
        torch.testing.assert_close(found[name], table, atol=1e-5, rtol=1e-4, msg=name)
    torch.testing.assert_close(
        torch.cat(vectors), tables(given[-1].sparse), atol=1e-5, rtol=1e-4
    )
