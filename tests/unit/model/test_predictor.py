"""The predictor against the model's own forward pass in evaluation mode."""

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.mlp import build_mlp
from fastdlrm.model.predictor import Predictor
from tests.interactions import SETTINGS, make_interaction

D = 8


def make_model(
    interaction: str = "dot",
    num_dense: int = 3,
    *,
    bottom: tuple[int, ...] = (6, D),
    top: tuple[int, ...] = (9, 5),
    **changes,
) -> DLRM:
    generator = torch.Generator().manual_seed(0)
    tables = EmbeddingTables({"a": 20, "b": 7}, ["a", "b", "a"], embedding_dim=D)
    tables.initialise("normal", generator, 0.5)
    join = make_interaction(interaction, 3, D, num_dense > 0, generator)
    bottom_mlp = build_mlp(num_dense, bottom, generator=generator, **changes) if num_dense else None
    top_mlp = build_mlp(join.width, top, out_features=1, generator=generator, **changes)
    return DLRM(tables, bottom_mlp, join, top_mlp)


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
@pytest.mark.parametrize("interaction", SETTINGS)
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


@pytest.mark.parametrize("B", [1, 17])
def test_a_bottom_mlp_may_end_without_relu(B: int) -> None:
    model = make_model()
    model.bottom_mlp = model.bottom_mlp[:-1]
    dense, sparse = make_inputs(3, False, B)
    assert (model.bottom_mlp(dense) < 0).any()
    found = Predictor(model)(dense, sparse)
    torch.testing.assert_close(found, model(dense, sparse), rtol=1e-6, atol=1e-6)


def test_a_logit_is_float32_whatever_the_type() -> None:
    """With rows of 16 bits and nothing but a factorization machine no digit is lost."""
    model = make_model("fm", num_dense=0, top=())
    model.tables.weight.data = model.tables.weight.data.bfloat16().float()
    inputs = make_inputs(0, False, 50)
    assert torch.equal(Predictor(model, torch.bfloat16)(*inputs), Predictor(model)(*inputs))


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


@pytest.mark.parametrize("interaction", SETTINGS)
def test_bits_are_a_samples_own_however_matrices_are_multiplied(interaction: str) -> None:
    """oneDNN's products, which `train` may choose, depend on the batch where they are small."""
    predictor = Predictor(make_model(interaction))
    dense, sparse = make_inputs(3, False, 300)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        together = predictor(dense, sparse)
        for start, count in ((0, 1), (5, 2), (3, 16), (40, 17), (31, 257)):
            rows = slice(start, start + count)
            assert torch.equal(
                predictor(dense[rows], sparse.slice(start, start + count)), together[rows]
            )
    finally:
        torch.set_float32_matmul_precision(before)


WIDE = {"bottom": (1024, 256, 64, D), "top": (512, 256)}
NARROW = {"bottom": (6, D), "top": (9, 5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"norm": "layer"}, {"norm": "batch"}])
@pytest.mark.parametrize("has_bags", [False, True])
@pytest.mark.parametrize("num_dense", [3, 0])
@pytest.mark.parametrize("interaction", SETTINGS)
@pytest.mark.parametrize("widths", [WIDE, NARROW])
def test_bits_do_not_depend_on_the_other_samples(
    widths: dict[str, tuple[int, ...]],
    interaction: str,
    num_dense: int,
    has_bags: bool,
    changes: dict[str, object],
    dtype: torch.dtype,
) -> None:
    model = make_model(interaction, num_dense, **widths, **changes)
    predictor = Predictor(model, dtype)
    dense, sparse = make_inputs(num_dense, has_bags, 300)
    together = predictor(dense, sparse)
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            for start, count in ((0, 1), (5, 2), (20, 7), (21, 15), (3, 16), (40, 17), (31, 257)):
                rows = slice(start, start + count)
                alone = predictor(dense[rows], sparse.slice(start, start + count))
                assert torch.equal(alone, together[rows]), (num_threads, start, count)
    finally:
        torch.set_num_threads(threads)
