"""Ranks that share the tables learn what one process learns.

Joining a world takes longer than a case's steps, so a test runs all its cases in one.
"""

import pytest
import torch

from fastdlrm.batch import Batch
from fastdlrm.train.config import SparseOptimizerConfig
from fastdlrm.train.step import TrainStep
from tests.dist.ranks import Ranks
from tests.dist.training import Case, make_plan, train_all, whole
from tests.interactions import SETTINGS
from tests.training import bags, make_config, make_model, single_ids, state_of, take

NUM_STEPS = 8
KINDS = ("single", "bags", "weighted")
SHARDINGS = ("table_wise", "row_wise", "column_wise", "data_parallel")
MIXES = (
    *((sharding, sharding) for sharding in SHARDINGS),
    ("row_wise", "data_parallel"),
    ("column_wise", "table_wise"),
    ("row_wise", "column_wise"),
    ("table_wise", "data_parallel"),
)
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam")


def draw(kind: str, num_samples: int = 48, num_dense: int = 5) -> list[Batch]:
    if kind == "single":
        return [single_ids(seed, num_samples, num_dense) for seed in range(NUM_STEPS)]
    is_weighted = kind == "weighted"
    return [
        bags(seed, is_weighted=is_weighted, num_samples=num_samples) for seed in range(NUM_STEPS)
    ]


def assert_as_one_process(ranks: Ranks, world_size: int, cases: dict[str, Case]) -> None:
    """Losses and every number of the state, within rounding.

    Sums over samples are taken rank by rank, and matrix products in other blocks: 1e-5 of the
    largest number is 100 roundings of float32.
    """
    of_ranks = ranks.run(train_all, world_size, list(cases.values()))
    for (name, case), *results in zip(cases.items(), *of_ranks, strict=True):
        one = TrainStep(make_model(**case.model), case.config)
        expected_losses = take(one, case.batches)
        losses = torch.tensor([result[0] for result in results]).sum(0)
        torch.testing.assert_close(
            losses, expected_losses, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text
        )
        found, expected = whole([result[1] for result in results]), state_of(one)
        assert found.keys() == expected.keys(), name
        for key, tensor in expected.items():
            largest = float(tensor.abs().max()) if tensor.numel() else 1.0
            assert found[key].shape == tensor.shape, (name, key)
            torch.testing.assert_close(
                found[key].to(tensor.dtype),
                tensor,
                rtol=1e-4,
                atol=1e-5 * max(largest, 0.1),
                msg=lambda text, name=name, key=key: f"{name}: {key}: {text}",
            )


@pytest.mark.parametrize(
    ("world_size", "mixes", "kinds"), [(1, MIXES[4:7], KINDS), (2, MIXES, KINDS[:2]), (4, MIXES, KINDS)]
)
def test_every_sharding(
    ranks: Ranks, world_size: int, mixes: tuple[tuple[str, str], ...], kinds: tuple[str, ...]
) -> None:
    config = make_config("adagrad", "rowwise_adagrad")
    cases = {
        f"{a} and {b}, {kind}": Case(make_plan(world_size, a=a, b=b), config, draw(kind))
        for a, b in mixes
        for kind in kinds
    }
    assert_as_one_process(ranks, world_size, cases)


def test_every_optimizer(ranks: Ranks) -> None:
    """On all four shardings, with single ids and with bags; rowwise_adagrad is above."""
    cases = {
        f"{optimizer}, {a} and {b}, {kind}": Case(
            make_plan(2, a=a, b=b), make_config("sgd", optimizer), draw(kind)
        )
        for optimizer in ("sgd", "adagrad", "adam")
        for (a, b), kind in (
            (("row_wise", "data_parallel"), "single"),
            (("data_parallel", "row_wise"), "bags"),
            (("column_wise", "table_wise"), "single"),
            (("row_wise", "column_wise"), "bags"),
        )
    }
    assert_as_one_process(ranks, 2, cases)


def test_ranks_may_have_different_numbers_of_samples(ranks: Ranks) -> None:
    """1 and 3 samples leave some of four ranks without any."""
    config = make_config("adagrad", "adam", gradient_accumulation_steps=2)
    plan = make_plan(4, a="row_wise", b="data_parallel")
    cases = {
        f"{num_samples} samples, {kind}": Case(plan, config, draw(kind, num_samples))
        for num_samples in (1, 3, 46)
        for kind in ("single", "bags")
    }
    assert_as_one_process(ranks, 4, cases)


def test_clipping_takes_the_norm_over_all_ranks(ranks: Ranks) -> None:
    config = make_config("sgd", "rowwise_adagrad", gradient_clip_norm=0.05)
    cases = {
        sharding: Case(make_plan(2, a=sharding, b=sharding), config, draw("single"))
        for sharding in SHARDINGS
    }
    assert_as_one_process(ranks, 2, cases)


def test_the_mean_of_a_bag_is_of_all_its_rows(ranks: Ranks) -> None:
    config = make_config("sgd", "rowwise_adagrad")
    cases = {
        f"{a} and {b}, {kind}, {pooling}": Case(
            make_plan(2, a=a, b=b), config, draw(kind), {"pooling": pooling}
        )
        for a, b, pooling in (
            *((sharding, sharding, "mean") for sharding in SHARDINGS),
            *((sharding, sharding, "mixed") for sharding in SHARDINGS),
        )
        for kind in ("bags", "weighted")
    }
    assert_as_one_process(ranks, 2, cases)


def test_pooling_weights_are_learned(ranks: Ranks) -> None:
    """Where columns of a row lie on several ranks, every one of them has the weight's very bits."""
    model = {"pooling": "mixed", "learns_weights": True}
    clipped = {"gradient_clip_norm": 0.05}
    parts = {"gradient_accumulation_steps": 3}
    cases = {
        f"{optimizer}, {a} and {b}, {kind}, {changes}": Case(
            make_plan(2, a=a, b=b), make_config("sgd", optimizer, **changes), draw(kind), model
        )
        for optimizer, a, b, kind, changes in (
            ("sgd", "table_wise", "row_wise", "weighted", {}),
            ("sgd", "column_wise", "data_parallel", "weighted", clipped),
            ("adagrad", "column_wise", "table_wise", "bags", {}),
            ("adagrad", "row_wise", "data_parallel", "single", parts),
            ("rowwise_adagrad", "column_wise", "row_wise", "bags", parts),
            ("rowwise_adagrad", "data_parallel", "column_wise", "single", clipped),
            ("rowwise_adagrad", "row_wise", "row_wise", "single", clipped),
            ("adam", "row_wise", "column_wise", "weighted", {}),
            ("adam", "data_parallel", "data_parallel", "weighted", clipped),
        )
    }
    assert_as_one_process(ranks, 2, cases)


def test_any_model(ranks: Ranks) -> None:
    joins = ({"interaction": name} for name in SETTINGS if name != "dot")
    models = (*joins, {"num_dense": 0}, {"norm": "layer"})
    config = make_config("sgd", "rowwise_adagrad")
    plan = make_plan(2, a="row_wise", b="table_wise")
    cases = {
        str(model): Case(plan, config, draw("single", num_dense=model.get("num_dense", 5)), model)
        for model in models
    }
    assert_as_one_process(ranks, 2, cases)


def test_tables_learn_as_fast_on_any_number_of_ranks(ranks: Ranks) -> None:
    """The reference adds up every rank's mean: its tables' gradients grow with the ranks.

    A step of 1 by sgd moves a row by its gradient.
    """
    sgd = SparseOptimizerConfig(name="sgd", learning_rate=1.0)
    config = make_config("sgd", sparse_optimizer=sgd)
    before = state_of(TrainStep(make_model(), config))
    norms = []
    for world_size in (1, 2, 4):
        case = Case(make_plan(world_size, a="row_wise", b="table_wise"), config, draw("single")[:1])
        after = whole([done[0][1] for done in ranks.run(train_all, world_size, [case])])
        norms.append([float((after[t] - before[t]).norm()) for t in before if "tables." in t])
    assert len(norms[0]) == 2
    assert all(norm > 1e-3 for norm in norms[0])
    for of_ranks in norms[1:]:
        assert of_ranks == pytest.approx(norms[0], rel=1e-5)
