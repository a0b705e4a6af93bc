"""Two GPUs that share the tables learn what one process learns, with and without a CUDA graph."""

import pytest
import torch

from fastdlrm.train.config import SparseOptimizerConfig
from fastdlrm.train.step import TrainStep
from tests.dist.ranks import Ranks
from tests.dist.training import Case, make_plan, train, whole
from tests.training import bags, make_config, make_model, single_ids, state_of, take

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

NUM_STEPS = 10
MIXES = (
    {"a": "table_wise", "b": "table_wise"},
    {"a": "row_wise", "b": "data_parallel"},
    {"a": "column_wise", "b": "table_wise"},
    {"a": "row_wise", "b": "row_wise"},
)


@pytest.mark.parametrize("kind", ["single", "bags"])
@pytest.mark.parametrize("use_cuda_graph", [True, False])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam"])
@pytest.mark.parametrize("sharding", MIXES, ids=lambda mix: "-".join(mix.values()))
def test_two_gpus_are_one_process(
    ranks: Ranks, sharding: dict[str, str], optimizer: str, use_cuda_graph: bool, kind: str
) -> None:
    """Products on a GPU are summed in another order: 1e-4 of the largest number."""
    config = make_config("adagrad", optimizer, use_cuda_graph=use_cuda_graph)
    draw = single_ids if kind == "single" else bags
    batches = [draw(seed) for seed in range(NUM_STEPS)]
    one = TrainStep(make_model(), config)
    expected_losses = take(one, batches)
    results = ranks.run(train, 2, Case(make_plan(2, **sharding), config, batches), "cuda")
    losses = torch.tensor([result[0] for result in results]).sum(0)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-5)
    found, expected = whole([result[1] for result in results]), state_of(one)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = max(float(tensor.abs().max()), 0.1)
        torch.testing.assert_close(
            found[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-4 * largest, msg=name
        )


@pytest.mark.parametrize("sharding", MIXES, ids=lambda mix: "-".join(mix.values()))
def test_bf16_and_the_graph_take_the_very_steps(ranks: Ranks, sharding: dict[str, str]) -> None:
    results = []
    for use_cuda_graph in (True, False):
        name = "sgd" if "column_wise" in sharding.values() else "rowwise_adagrad"
        config = make_config(
            "adagrad",
            precision="bf16",
            sparse_optimizer=SparseOptimizerConfig(name=name, learning_rate=0.05),
            use_cuda_graph=use_cuda_graph,
        )
        batches = [single_ids(seed) for seed in range(NUM_STEPS)]
        case = Case(make_plan(2, **sharding), config, batches)
        results.append(ranks.run(train, 2, case, "cuda"))
    with_graph, without = (whole([state for _, state in result]) for result in results)
    assert [name for name in with_graph if not torch.equal(with_graph[name], without[name])] == []
