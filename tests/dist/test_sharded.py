"""Ranks that share the tables learn what one process learns."""

import pytest
import torch

from fastdlrm.batch import Batch
from fastdlrm.parallel.plan import ShardingPlan
from fastdlrm.train.config import TrainConfig
from fastdlrm.train.step import TrainStep
from tests.dist.ranks import Ranks
from tests.dist.training import make_plan, train, whole
from tests.training import bags, make_config, make_model, single_ids, state_of, take

NUM_STEPS = 20
SHARDINGS = ("table_wise", "row_wise", "column_wise", "data_parallel")
MIXES = (
    *({"a": sharding, "b": sharding} for sharding in SHARDINGS),
    {"a": "row_wise", "b": "data_parallel"},
    {"a": "column_wise", "b": "table_wise"},
    {"a": "row_wise", "b": "column_wise"},
    {"a": "table_wise", "b": "data_parallel"},
)
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam")


def draw(kind: str, num_samples: int = 48) -> list[Batch]:
    if kind == "single":
        return [single_ids(seed, num_samples) for seed in range(NUM_STEPS)]
    is_weighted = kind == "weighted"
    return [
        bags(seed, is_weighted=is_weighted, num_samples=num_samples) for seed in range(NUM_STEPS)
    ]


def assert_as_one_process(
    ranks: Ranks,
    plan: ShardingPlan,
    config: TrainConfig,
    batches: list[Batch],
    **model: object,
) -> None:
    """Losses and every number of the state, within rounding.

    Sums over samples are taken rank by rank, and matrix products in other blocks: 1e-5 of the
    largest number is 100 roundings of float32.
    """
    one = TrainStep(make_model(**model), config)
    expected_losses = take(one, batches)
    results = ranks.run(train, plan.world_size, plan, config, batches, model)
    losses = torch.tensor([result[0] for result in results]).sum(0)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    found, expected = whole([result[1] for result in results]), state_of(one)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = float(tensor.abs().max()) if tensor.numel() else 1.0
        assert found[name].shape == tensor.shape, name
        torch.testing.assert_close(
            found[name].to(tensor.dtype), tensor, rtol=1e-4, atol=1e-5 * max(largest, 0.1), msg=name
        )


@pytest.mark.parametrize("kind", ["single", "bags", "weighted"])
@pytest.mark.parametrize("sharding", MIXES, ids=lambda mix: "-".join(mix.values()))
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_sharding(
    ranks: Ranks, world_size: int, sharding: dict[str, str], kind: str
) -> None:
    config = make_config("adagrad", "rowwise_adagrad")
    plan = make_plan(world_size, **sharding)
    assert_as_one_process(ranks, plan, config, draw(kind))


@pytest.mark.parametrize("kind", ["single", "bags"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("sharding", MIXES[3:7], ids=lambda mix: "-".join(mix.values()))
def test_every_optimizer(
    ranks: Ranks, sharding: dict[str, str], optimizer: str, kind: str
) -> None:
    config = make_config("sgd", optimizer)
    assert_as_one_process(ranks, make_plan(2, **sharding), config, draw(kind))


@pytest.mark.parametrize("kind", ["single", "bags"])
@pytest.mark.parametrize("num_samples", [1, 3, 46])
def test_ranks_may_have_different_numbers_of_samples(
    ranks: Ranks, num_samples: int, kind: str
) -> None:
    """1 and 3 samples leave some of four ranks without any."""
    config = make_config("adagrad", "adam", gradient_accumulation_steps=2)
    plan = make_plan(4, a="row_wise", b="data_parallel")
    assert_as_one_process(ranks, plan, config, draw(kind, num_samples))


@pytest.mark.parametrize("sharding", MIXES[:4], ids=lambda mix: "-".join(mix.values()))
def test_clipping_takes_the_norm_over_all_ranks(ranks: Ranks, sharding: dict[str, str]) -> None:
    config = make_config("sgd", "rowwise_adagrad", gradient_clip_norm=0.05)
    assert_as_one_process(ranks, make_plan(2, **sharding), config, draw("single"))


@pytest.mark.parametrize("sharding", MIXES[:4], ids=lambda mix: "-".join(mix.values()))
@pytest.mark.parametrize("kind", ["bags", "weighted"])
def test_the_mean_of_a_bag_is_of_all_its_rows(
    ranks: Ranks, sharding: dict[str, str], kind: str
) -> None:
    config = make_config("sgd", "rowwise_adagrad")
    assert_as_one_process(ranks, make_plan(2, **sharding), config, draw(kind), pooling="mean")


@pytest.mark.parametrize("model", [{"interaction": "cat"}, {"num_dense": 0}, {"norm": "layer"}])
def test_any_model(ranks: Ranks, model: dict[str, object]) -> None:
    num_dense = model.get("num_dense", 5)
    batches = [single_ids(seed, num_dense=num_dense) for seed in range(NUM_STEPS)]
    plan = make_plan(2, a="row_wise", b="table_wise")
    config = make_config("sgd", "rowwise_adagrad")
    assert_as_one_process(ranks, plan, config, batches, **model)
