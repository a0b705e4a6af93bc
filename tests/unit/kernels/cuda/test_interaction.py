"""The interaction's kernels, forward and backward, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from fastdlrm.kernels import interaction as definition
from fastdlrm.kernels.cuda import interaction as kernels
from tests.kernel_device import DEVICE, FLOATS, IS_COMPILED, MARKS, assert_near, draw

pytestmark = MARKS

SHAPES = [
    # features, dim, dense vector, diagonal, zero columns
    (1, 1, True, False, 0),
    (1, 20, False, True, 3),
    (2, 3, False, False, 0),
    (3, 128, True, True, 0),
    (15, 20, True, False, 5),
    (16, 3, True, True, 1),
    (26, 16, True, False, 0),
    (64, 20, False, False, 0),  # a full tile
    (64, 20, True, True, 0),  # one vector more
    (128, 20, True, False, 7),  # three tiles
    (129, 128, False, True, 0),
]


def natural_width(num_features: int, dim: int, has_dense: bool, diagonal: bool) -> int:
    return definition.dot_interaction_width(num_features, dim, has_dense, diagonal)


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def assert_both_directions(
    dense: Tensor | None, pooled: Tensor, diagonal: bool, pads: int, relu: bool
) -> None:
    """The plain kernels against the definition."""
    _, num_features, dim = pooled.shape
    width = natural_width(num_features, dim, dense is not None, diagonal) + pads
    found = kernels.dot_interaction(dense, pooled, diagonal, width)
    exact = definition.dot_interaction(double(dense), pooled.double(), diagonal, width)
    assert found.dtype == pooled.dtype
    assert not found[:, width - pads :].any()
    assert_near(found, exact)
    grad = draw(torch.Generator().manual_seed(1), *found.shape, dtype=pooled.dtype)
    grad_dense, grad_pooled = kernels.dot_interaction_backward(grad, dense, pooled, diagonal, relu)
    exact_dense, exact_pooled = definition.dot_interaction_backward(
        grad.double(), double(dense), pooled.double(), diagonal, relu=relu
    )
    assert grad_pooled.transpose(0, 1).is_contiguous()
    assert_near(grad_pooled, exact_pooled)
    if exact_dense is not None:
        assert_near(grad_dense, exact_dense)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("num_features", "dim", "has_dense", "diagonal", "pads"), SHAPES)
def test_is_the_definition(
    num_features: int, dim: int, has_dense: bool, diagonal: bool, pads: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    pooled = draw(generator, num_features, 3, dim, dtype=dtype).transpose(0, 1)
    dense = draw(generator, 3, dim, dtype=dtype).relu() if has_dense else None
    assert_both_directions(dense, pooled, diagonal, pads, relu=has_dense)


@pytest.mark.parametrize(
    ("table_dtype", "rows_dtype"),
    [
        (torch.float32, torch.int32),
        (torch.float16, torch.int64),
        (torch.bfloat16, torch.int32),
    ],
)
@pytest.mark.parametrize(("num_features", "dim", "has_dense", "diagonal", "pads"), SHAPES[::2])
def test_lookup_is_the_definition(
    num_features: int,
    dim: int,
    has_dense: bool,
    diagonal: bool,
    pads: int,
    table_dtype: torch.dtype,
    rows_dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = draw(generator, 11, dim).to(table_dtype)
    rows = torch.randint(0, 11, (3 * num_features,), generator=generator).to(DEVICE, rows_dtype)
    dense = draw(generator, 3, dim).relu() if has_dense else None
    width = natural_width(num_features, dim, has_dense, diagonal) + pads
    found = kernels.lookup_dot_interaction(
        weight, rows, dense, num_features, diagonal, width, torch.float32
    )
    exact = definition.lookup_dot_interaction(
        weight.double(), rows, double(dense), num_features, diagonal, width
    )
    assert_near(found, exact)
    grad = draw(generator, *found.shape)
    grad_dense, grad_pooled = kernels.lookup_dot_interaction_backward(
        grad, weight, rows, dense, num_features, diagonal, has_dense, 0
    )
    exact_dense, exact_pooled = definition.lookup_dot_interaction_backward(
        grad.double(), weight.double(), rows, double(dense), num_features, diagonal, relu=has_dense
    )
    assert grad_pooled.dtype == torch.float32
    assert_near(grad_pooled, exact_pooled)
    if exact_dense is not None:
        assert_near(grad_dense, exact_dense)


@pytest.mark.parametrize("num_rows", [15, 40])
def test_gradients_go_back_to_their_rows(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, dense = draw(generator, num_rows, 7), draw(generator, 3, 7).relu()
    rows = torch.randperm(num_rows, generator=generator)[:15].to(DEVICE, torch.int32)
    grad = draw(generator, 3, natural_width(5, 7, True, False))
    arguments = (grad, weight, rows, dense, 5, False)
    own_dense, by_bag = kernels.lookup_dot_interaction_backward(*arguments, True, 0)
    of_dense, by_row = kernels.lookup_dot_interaction_backward(*arguments, True, num_rows)
    assert torch.equal(own_dense, of_dense)
    expected = torch.zeros_like(weight)
    expected[rows.long()] = by_bag.transpose(0, 1).reshape(15, 7)
    assert torch.equal(by_row, expected)


@pytest.mark.parametrize("has_dense", [False, True])
def test_any_strides(has_dense: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = draw(generator, 4, 5, 20)
    dense = draw(generator, 4, 9)[:, :7].relu() if has_dense else None
    feature_major = draw(generator, 5, 4, 7).transpose(0, 1)
    column_first = draw(generator, 4, 7, 5).transpose(1, 2)
    for pooled in (wide[:, :, 3:10], wide[:, ::2, :7], feature_major, column_first):
        assert_both_directions(dense, pooled, diagonal=False, pads=0, relu=False)
    if dense is not None:
        by_column = draw(generator, 7, 4).t()
        assert_both_directions(by_column, feature_major, diagonal=True, pads=2, relu=False)


def test_gradient_of_any_strides() -> None:
    generator = torch.Generator().manual_seed(0)
    pooled, dense = draw(generator, 4, 5, 7), draw(generator, 4, 7)
    wide = draw(generator, 4, 30)
    for grad in (wide[:, :22], draw(generator, 22, 4).t(), wide[:, 4:]):
        found = kernels.dot_interaction_backward(grad, dense, pooled, False, False)
        exact = definition.dot_interaction_backward(
            grad.double(), dense.double(), pooled.double(), False
        )
        for one, other in zip(found, exact, strict=True):
            assert other is not None
            assert_near(one, other)


def test_where_the_relu_was_at_zero_there_is_no_gradient() -> None:
    pooled, dense = torch.ones(1, 1, 2, device=DEVICE), torch.tensor([[0.0, 3.0]], device=DEVICE)
    grad = torch.tensor([[1.0, 1.0, 10.0]], device=DEVICE)
    # of the dense vector: its own 1 and 10 times the pooled 1
    found, _ = kernels.dot_interaction_backward(grad, dense, pooled, False, True)
    assert found.tolist() == [[0.0, 11.0]]
    found, _ = kernels.dot_interaction_backward(grad, dense, pooled, False, False)
    assert found.tolist() == [[11.0, 11.0]]


def test_no_samples() -> None:
    pooled, dense = torch.ones(0, 3, 4, device=DEVICE), torch.ones(0, 4, device=DEVICE)
    joined = kernels.dot_interaction(dense, pooled, False, 12)
    assert joined.shape == (0, 12)
    grads = kernels.dot_interaction_backward(joined, dense, pooled, False, True)
    assert [grad.shape for grad in grads] == [(0, 4), (0, 3, 4)]


@pytest.mark.gpu
@pytest.mark.skipif(not IS_COMPILED, reason="needs a CUDA device")
def test_tf32_where_torch_uses_it() -> None:
    generator = torch.Generator().manual_seed(0)
    pooled = draw(generator, 8, 5, 64)
    exact = definition.dot_interaction(None, pooled.double())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = kernels.dot_interaction(None, pooled, False, 0)
    finally:
        torch.set_float32_matmul_precision(before)
    # two factors of 11 bits each: 2^-10 of a product, 64 products of size about 1
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=64 * 2**-10)
    assert (found.double() - exact).abs().max() > 1e-5
