"""The predictor against the model's own forward pass in evaluation mode."""

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.mlp import build_mlp
from fastdlrm.model.predictor import Predictor

D = 8


def make_model(interaction: str = "dot", num_dense: int = 3, **changes) -> DLRM:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables({"a": 20, "b": 7}, ["a", "b", "a"], embedding_dim=D)
    tables.initialise("normal", generator, 0.5)
    vectors = 3 + bool(num_dense)
    width = vectors * D
    if interaction == "dot":
        width = vectors * (vectors - 1) // 2 + D * bool(num_dense)
    bottom = build_mlp(num_dense, (6, D), generator=generator, **changes) if num_dense else None
    top = build_mlp(width, (9, 5), out_features=1, generator=generator, **changes)
    return DLRM(tables, bottom, top, interaction=interaction)


def make_inputs(num_dense: int, has_bags: bool, B: int) -> tuple[Tensor, SparseBatch]:
    generator = torch.Generator().manual_seed(1)
    lengths = None
    sizes = [B] * 3
    if has_bags:
        lengths = torch.randint(0, 4, (3 * B,), generator=generator, dtype=torch.int32)
        sizes = lengths.view(3, B).sum(1).tolist()
    ids = [
        torch.randint(0, rows, (size,), generator=generator, dtype=torch.int32)
        for rows, size in zip((20, 7, 20), sizes, strict=True)
    ]
    sparse = SparseBatch(ids=torch.cat(ids), lengths=lengths, weights=None, num_features=3)
    return torch.randn(B, num_dense, generator=generator), sparse


@pytest.mark.parametrize("B", [1, 17])
@pytest.mark.parametrize("has_bags", [False, True])
@pytest.mark.parametrize("num_dense", [3, 0])
@pytest.mark.parametrize("interaction", ["dot", "cat"])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.5}, {"norm": "layer"}, {"norm": "batch"}])
def test_is_the_model(
    changes: dict[str, object], interaction: str, num_dense: int, has_bags: bool, B: int
) -> None:
    model = make_model(interaction, num_dense, **changes)
    inputs = make_inputs(num_dense, has_bags, B)
    found = Predictor(model.train())(*inputs)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_bf16_is_near_and_only_where_asked_for() -> None:
    model, inputs = make_model(), make_inputs(3, False, 50)
    exact = Predictor(model)(*inputs)
    for found in (
        Predictor(model, torch.bfloat16),
        Predictor(make_model(norm="layer"), torch.bfloat16),
    ):
        assert found(*inputs).dtype == torch.float32
    coarse = Predictor(model, torch.bfloat16)(*inputs)
    # 8 bits a number, logits of order 1
    torch.testing.assert_close(coarse, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(coarse, exact)
