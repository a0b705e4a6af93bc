"""The interaction's order by hand, its values by the oracle, its gradient numerically."""

import numpy as np
import pytest
import torch

from fastdlrm.kernels.interaction import (
    _pair_indices,
    cat_interaction,
    define_dot_interaction,
    dot_interaction,
    dot_interaction_backward,
    lookup_dot_interaction,
    lookup_dot_interaction_backward,
)
from tests import oracles

DENSE = torch.tensor([[1.0, 2.0]])
POOLED = torch.tensor([[[3.0, 5.0], [7.0, 11.0]]])


def test_order_of_the_pairs() -> None:
    # (1,0): 1*3 + 2*5 = 13; (2,0): 1*7 + 2*11 = 29; (2,1): 3*7 + 5*11 = 76
    assert dot_interaction(DENSE, POOLED).tolist() == [[1, 2, 13, 29, 76]]


def test_order_with_the_diagonal() -> None:
    # (0,0): 1 + 4; (1,0): 13; (1,1): 9 + 25; (2,0): 29; (2,1): 76; (2,2): 49 + 121
    found = dot_interaction(DENSE, POOLED, include_diagonal=True)
    assert found.tolist() == [[1, 2, 5, 13, 34, 29, 76, 170]]


def test_without_a_dense_vector() -> None:
    assert dot_interaction(None, POOLED).tolist() == [[76]]
    assert cat_interaction(None, POOLED).tolist() == [[3, 5, 7, 11]]


def test_cat_puts_dense_first() -> None:
    assert cat_interaction(DENSE, POOLED).tolist() == [[1, 2, 3, 5, 7, 11]]


def test_cat_of_a_dense_vector_alone() -> None:
    assert cat_interaction(DENSE, torch.empty(1, 0, 2)).tolist() == [[1, 2]]


@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("include_diagonal", [True, False])
def test_matches_the_oracle(has_dense: bool, include_diagonal: bool) -> None:
    rng = np.random.default_rng(0)
    dense, pooled = rng.normal(size=(3, 4)), rng.normal(size=(3, 5, 4))
    as_tensor = torch.from_numpy(dense) if has_dense else None
    found = dot_interaction(as_tensor, torch.from_numpy(pooled), include_diagonal)
    expected = oracles.dot_interaction(dense if has_dense else None, pooled, include_diagonal)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("include_diagonal", [True, False])
@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_gradcheck(interaction: str, has_dense: bool, include_diagonal: bool) -> None:
    torch.manual_seed(0)
    dense = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    # Feature-major in memory, as the tables return it.
    pooled = torch.randn(4, 2, 3, dtype=torch.float64).transpose(0, 1).requires_grad_()

    def run(*vectors: torch.Tensor) -> torch.Tensor:
        first = vectors[0] if has_dense else None
        if interaction == "cat":
            return cat_interaction(first, vectors[-1])
        return dot_interaction(first, vectors[-1], include_diagonal)

    assert torch.autograd.gradcheck(run, (dense, pooled) if has_dense else (pooled,))


def test_infinite_gradient_of_a_pair_stays_in_the_pair() -> None:
    pooled = torch.randn(1, 3, 2, requires_grad=True)
    dot_interaction(None, pooled).backward(torch.tensor([[torch.inf, 1.0, 1.0]]))
    assert pooled.grad is not None
    assert pooled.grad[0, 2].isfinite().all()  # the pair (1,0) holds no vector 2


def test_first_use_in_inference_mode_leaves_training_possible() -> None:
    # 7 vectors: a number of pairs that no other test caches; float64 has the definition
    dense, pooled = torch.randn(2, 3).double(), torch.randn(2, 6, 3).double()
    with torch.inference_mode():
        expected = dot_interaction(dense, pooled)
    dense.requires_grad_()
    found = dot_interaction(dense, pooled)
    found.sum().backward()
    assert torch.equal(found, expected)


def test_index_tensors_are_made_once() -> None:
    """The reference builds its index tensors anew on the CPU at every forward."""
    dense, pooled = torch.randn(2, 3), torch.randn(2, 8, 3)  # no other test has 9 vectors
    define_dot_interaction(dense, pooled, False, 0)
    before = _pair_indices.cache_info()
    define_dot_interaction(dense, pooled, False, 0)
    after = _pair_indices.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


@pytest.mark.parametrize("has_dense", [True, False])
def test_padding_is_zero_and_has_no_gradient(has_dense: bool) -> None:
    dense = torch.randn(3, 4) if has_dense else None
    pooled = torch.randn(3, 5, 4)
    plain = dot_interaction(dense, pooled)
    padded = dot_interaction(dense, pooled, width=24)
    assert torch.equal(padded[:, : plain.shape[1]], plain)
    assert not padded[:, plain.shape[1] :].any()
    grad = torch.randn_like(padded)
    found = dot_interaction_backward(grad, dense, pooled)
    expected = dot_interaction_backward(grad[:, : plain.shape[1]], dense, pooled)
    assert torch.equal(found[1], expected[1])
    if has_dense:
        assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("has_dense", [True, False])
def test_torch_knows_the_operator(has_dense: bool) -> None:
    dense = torch.randn(2, 3, requires_grad=True) if has_dense else None
    pooled = torch.randn(2, 4, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.fastdlrm.dot_interaction, (dense, pooled, True, 32))


@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("include_diagonal", [True, False])
def test_torch_knows_the_backward(include_diagonal: bool, has_dense: bool) -> None:
    dense = torch.randn(2, 3) if has_dense else None
    arguments = (torch.randn(2, 32), dense, torch.randn(2, 4, 3), include_diagonal, has_dense)
    torch.library.opcheck(torch.ops.fastdlrm.dot_interaction_backward, arguments)


@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("include_diagonal", [True, False])
def test_torch_knows_the_operators_of_looked_up_ids(
    include_diagonal: bool, has_dense: bool
) -> None:
    weight, rows = torch.randn(5, 3), torch.tensor([0, 4, 1, 1, 2, 0, 3, 3], dtype=torch.int32)
    dense = torch.randn(2, 3) if has_dense else None
    operators = torch.ops.fastdlrm
    forward = (weight, rows, dense, 4, include_diagonal, 32, torch.float32)
    torch.library.opcheck(operators.lookup_dot_interaction, forward)
    grad = torch.randn(2, 32)
    backward = (grad, weight, rows, dense, 4, include_diagonal, has_dense)
    torch.library.opcheck(operators.lookup_dot_interaction_backward, (*backward, 0))
    unique = torch.tensor([6, 4, 1, 8, 2, 0, 3, 5], dtype=torch.int32)
    backward = (grad, torch.randn(9, 3), unique, dense, 4, include_diagonal, has_dense)
    torch.library.opcheck(operators.lookup_dot_interaction_backward, (*backward, 9))


@pytest.mark.parametrize("include_diagonal", [True, False])
def test_looked_up_ids_are_the_lookup_and_the_interaction(include_diagonal: bool) -> None:
    weight, dense = torch.randn(5, 3), torch.randn(2, 3).relu()
    rows = torch.tensor([0, 4, 1, 1, 2, 0, 3, 3], dtype=torch.int32)
    pooled = weight[rows.long()].view(4, 2, 3).transpose(0, 1)
    found = lookup_dot_interaction(weight, rows, dense, 4, include_diagonal, 20)
    torch.testing.assert_close(found, dot_interaction(dense, pooled, include_diagonal, 20))
    grad = torch.randn_like(found)
    backward = lookup_dot_interaction_backward(
        grad, weight, rows, dense, 4, include_diagonal, relu=True
    )
    expected = dot_interaction_backward(grad, dense, pooled, include_diagonal, relu=True)
    for one, other in zip(backward, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_goes_back_to_the_rows_it_came_from() -> None:
    weight, dense = torch.randn(5, 3), torch.randn(2, 3).relu()
    rows = torch.tensor([3, 1, 0, 4], dtype=torch.int32)  # row 2 is read by no one
    grad = torch.randn(2, 6)
    arguments = (grad, weight, rows, dense, 2)
    of_dense, of_bags = lookup_dot_interaction_backward(*arguments, relu=True)
    again, of_rows = lookup_dot_interaction_backward(*arguments, relu=True, scatter=True)
    assert torch.equal(of_dense, again)
    expected = [of_bags[0, 1], of_bags[1, 0], torch.zeros(3), of_bags[0, 0], of_bags[1, 1]]
    assert torch.equal(of_rows, torch.stack(expected))


def test_dims_must_agree() -> None:
    message = "dense vectors have dim 3, pooled embeddings 2; they must be equal: end the bottom"
    with pytest.raises(ValueError, match=message):
        dot_interaction(torch.ones(1, 3), POOLED)
    with pytest.raises(ValueError, match=message):
        cat_interaction(torch.ones(1, 3), POOLED)
