"""The whole model against the oracles, forward and backward, and its named tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from fastdlrm.batch import SparseBatch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.mlp import build_mlp
from tests import oracles
from tests.interactions import SETTINGS, expected, linears, make_interaction

DIM = 3
BAGS = [[[1, 0], [], [4]], [[2], [2, 2, 0], [1]]]  # by feature, by sample


def make_model(interaction: str, num_dense: int = 2) -> DLRM:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables({"a": 5, "b": 3}, ["a", "b"], embedding_dim=DIM)
    tables.initialise("reference", generator)
    bottom = build_mlp(num_dense, [4, DIM], generator=generator) if num_dense else None
    join = make_interaction(interaction, 2, DIM, num_dense > 0, generator)
    top = build_mlp(join.width, [6], out_features=1, generator=generator)
    return DLRM(tables, bottom, join, top)


def batch() -> SparseBatch:
    bags = [bag for feature in BAGS for bag in feature]
    return SparseBatch(
        ids=torch.tensor([i for bag in bags for i in bag], dtype=torch.int32),
        lengths=torch.tensor([len(bag) for bag in bags], dtype=torch.int32),
        weights=None,
        num_features=2,
    )


def expected_logits(model: DLRM, dense: np.ndarray) -> np.ndarray:
    pooled = [
        oracles.pooled_lookup(model.tables.table(t).double().numpy(), bags)
        for t, bags in zip("ab", BAGS, strict=True)
    ]
    pooled_BFD = np.stack(pooled, 1)
    vector = None
    if model.bottom_mlp is not None:
        vector = oracles.mlp(dense, linears(model.bottom_mlp), relu_last=True)
    joined = expected(model.interaction, vector, pooled_BFD)
    return oracles.mlp(joined, linears(model.top_mlp), relu_last=False)[:, 0]


@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("interaction", SETTINGS)
def test_logits_match_the_oracle(interaction: str, num_dense: int) -> None:
    model = make_model(interaction, num_dense)
    torch.manual_seed(0)
    dense = torch.randn(3, num_dense)
    found = model(dense, batch()).detach()
    assert found.shape == (3,)
    np.testing.assert_allclose(
        found, expected_logits(model, dense.double().numpy()), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("interaction", ["dot", "cat", "cross", "projection", "fm", "dcn"])
def test_gradients_match_differences_of_the_oracle(interaction: str) -> None:
    model = make_model(interaction).double()
    torch.manual_seed(0)
    dense = torch.randn(3, 2, dtype=torch.float64)
    model(dense, batch()).sum().backward()
    step = 1e-6
    for parameter in model.parameters():
        assert parameter.grad is not None
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        for k in range(0, len(flat), 3):
            start = flat[k].item()
            sums = []
            for moved in (start + step, start - step):
                flat[k] = moved
                sums.append(expected_logits(model, dense.numpy()).sum())
            flat[k] = start
            difference = (sums[0] - sums[1]) / (2 * step)
            assert grad[k].item() == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_head_gives_the_gradient_of_the_pooled_vectors_without_touching_the_tables() -> None:
    model, dense = make_model("dot"), torch.randn(3, 2)
    with torch.no_grad():
        pooled = model.tables(batch())
    pooled.requires_grad_()
    logits = model.head(dense, pooled)
    logits.sum().backward()
    assert pooled.grad is not None
    assert pooled.grad.shape == (3, 2, DIM)
    assert model.tables.weight.grad is None
    assert torch.equal(logits, model(dense, batch()))


def test_model_without_sparse_features() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables({}, [], embedding_dim=DIM)
    top = build_mlp(DIM, [], out_features=1, generator=generator)
    bottom = build_mlp(2, [DIM], generator=generator)
    model = DLRM(tables, bottom, make_interaction("cat", 0, DIM), top)
    none = torch.empty(0, dtype=torch.int32)
    empty = SparseBatch(ids=none, lengths=None, weights=None, num_features=0)
    assert model(torch.randn(4, 2), empty).shape == (4,)


def test_dense_parameters_are_all_but_the_tables() -> None:
    model = make_model("dot")
    tables = {id(p) for p in model.tables.parameters()}
    dense = {id(p) for p in model.dense_parameters().values()}
    assert dense == {id(p) for p in model.parameters()} - tables
    assert len(dense) == 8  # two layers a MLP, weight and bias each


def test_state_tensors_name_each_table_and_are_live() -> None:
    model = make_model("dot")
    tensors = model.state_tensors()
    assert {"tables.a", "tables.b", "bottom_mlp.0.weight", "top_mlp.2.bias"} < set(tensors)
    assert "interaction.layers.0.u" in make_model("cross").state_tensors()
    assert len(tensors) == 2 + 8
    for tensor in tensors.values():
        tensor.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in model.parameters())


def test_state_tensors_hold_the_running_statistics_of_batch_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables({}, [], embedding_dim=DIM)
    top = build_mlp(DIM, [4], out_features=1, norm="batch", generator=generator)
    bottom = build_mlp(2, [DIM], generator=generator)
    model = DLRM(tables, bottom, make_interaction("cat", 0, DIM), top)
    assert "top_mlp.1.running_mean" in model.state_tensors()


@pytest.mark.parametrize("has_bags", [False, True])
def test_export_sees_one_node_an_operator(has_bags: bool) -> None:
    """The operators stay whole in `torch.export`, and the exported program computes the same."""

    class Module(nn.Module):
        """Takes tensors alone, as an exported program does."""

        def __init__(self) -> None:
            super().__init__()
            self.model = make_model("dot")

        def forward(
            self, dense: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor | None
        ) -> torch.Tensor:
            sparse = SparseBatch(ids=ids, lengths=lengths, weights=None, num_features=2)
            return self.model(dense, sparse)

    module, sparse, dense = Module().eval(), batch(), torch.randn(3, 2)
    if has_bags:
        arguments = (dense, sparse.ids, sparse.lengths)
    else:
        arguments = (dense, torch.tensor([0, 4, 1, 2, 2, 0], dtype=torch.int32), None)
    program = torch.export.export(module, arguments)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    ours = [name for name in called if name.startswith("fastdlrm.")]
    operators = ("stack_rows", "pooled_lookup", "dot_interaction")
    assert ours == [f"fastdlrm.{name}.default" for name in operators]
    assert torch.equal(program.module()(*arguments), module(*arguments))
