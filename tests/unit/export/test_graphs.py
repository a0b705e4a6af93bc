"""Graphs of batch sizes give what the predictor gives without them."""

import pytest
import torch

from fastdlrm.batch import Batch
from fastdlrm.export.graphs import SIZES, GraphedPredictor
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.interaction import DotInteraction, Vectors
from fastdlrm.model.mlp import build_mlp
from fastdlrm.model.predictor import Predictor

D, N, ROWS = 16, 5, {"a": 40, "b": 7, "c": 900}


def make_model(device: torch.device) -> DLRM:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables(ROWS, list(ROWS), embedding_dim=D)
    tables.initialise("normal", generator, 0.5)
    bottom = build_mlp(N, (32, D), generator=generator)
    top = build_mlp(D + 6, (64, 32), out_features=1, generator=generator)
    dot = DotInteraction(Vectors(3, D, True))
    return DLRM(tables, bottom, dot, top).to(device).eval()


def make_batch(B: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    batch = Batch.allocate(B, N, len(ROWS))
    batch.dense.copy_(torch.randn(B, N, generator=generator))
    ids = [torch.randint(0, rows, (B,), generator=generator) for rows in ROWS.values()]
    batch.sparse.ids.copy_(torch.cat(ids))
    return batch


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_predictor(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    predictor = Predictor(make_model(device), dtype)
    graphed = GraphedPredictor(predictor, N, len(ROWS), device)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for seed, B in enumerate((1, 16, 17, 100, 100, 1, SIZES[-1] + 3)):
        batch = make_batch(B, seed)
        there = batch.to(device)
        expected = predictor(there.dense, there.sparse).cpu()
        found = graphed(batch)
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(found, graphed(batch))


@pytest.mark.gpu
def test_answers_stay_when_the_next_batch_comes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    graphed = GraphedPredictor(Predictor(make_model(device)), N, len(ROWS), device)
    first = graphed(make_batch(20, 1))
    kept = first.clone()
    graphed(make_batch(20, 2))
    assert torch.equal(first, kept)
