"""Tables of several widths on two ranks: they learn what one process learns."""

import torch

from fastdlrm.batch import Batch
from fastdlrm.train.step import TrainStep
from tests.dist.ranks import Ranks
from tests.dist.training import Case, make_plan, train_all, whole
from tests.training import (
    DIM,
    bags,
    make_config,
    make_model,
    mixed_tables,
    single_ids,
    state_of,
    take,
)

CASES = [
    # shardings and widths of a and b, kind of batch, pooling, optimizer of the tables
    (("row_wise", 3), ("data_parallel", DIM), "single", "sum", "adagrad"),
    (("column_wise", 5), ("table_wise", 2), "single", "sum", "rowwise_adagrad"),
    (("table_wise", 4), ("column_wise", DIM), "single", "sum", "adam"),
    (("row_wise", 3), ("row_wise", DIM), "bags", "mean", "rowwise_adagrad"),
    (("column_wise", 4), ("row_wise", 2), "bags", "sum", "sgd"),
    (("column_wise", DIM), ("table_wise", DIM // 2), "single", "sum", "sgd"),  # one group
    (("table_wise", 1), ("table_wise", 1), "single", "sum", "rowwise_adagrad"),
]


def draw(kind: str) -> list[Batch]:
    """The last batch leaves a rank without samples."""
    make = single_ids if kind == "single" else bags
    return [*(make(seed) for seed in range(3)), make(3, num_samples=1)]


def test_two_ranks_learn_what_one_does(ranks: Ranks) -> None:
    configs = [make_config("adagrad", name) for *_, name in CASES]
    cases = [
        Case(
            make_plan(2, {n: d for n, d in (("a", a[1]), ("b", b[1])) if d < DIM}, a=a[0], b=b[0]),
            config,
            draw(kind),
            {"pooling": pooling},
        )
        for (a, b, kind, pooling, _), config in zip(CASES, configs, strict=True)
    ]
    of_ranks = ranks.run(train_all, 2, cases)
    for case, spec, *results in zip(cases, CASES, *of_ranks, strict=True):
        (_, wide), (_, narrow), _, pooling, _ = spec
        model = make_model(tables=mixed_tables({"a": wide, "b": narrow}, pooling=pooling))
        one = TrainStep(model, case.config)
        expected = take(one, case.batches)
        losses = torch.tensor([result[0] for result in results]).sum(0)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        found, state = whole([result[1] for result in results]), state_of(one)
        assert found.keys() == state.keys(), spec
        for name, tensor in state.items():
            torch.testing.assert_close(
                found[name].to(tensor.dtype), tensor, rtol=1e-4, atol=1e-5, msg=f"{spec}: {name}"
            )
