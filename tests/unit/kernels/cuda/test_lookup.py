"""The lookup's kernel against the slow oracle."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdlrm.kernels import lookup  # noqa: F401  defines what the kernel implements
from fastdlrm.kernels.cuda.lookup import pooled_lookup, segment_of, stack_rows
from tests import oracles
from tests.kernel_device import DEVICE, FLOATS, MARKS, assert_near, draw

pytestmark = MARKS

NUM_ROWS = 9
LAYOUTS = {
    "one bag": [[3]],
    "empty bags": [[], [1, 2], [], [], [8], []],
    "all empty": [[], []],
    "repeated ids": [[4, 4, 4], [4], [0, 4, 0, 4]],
    "skew": [[7], [row % NUM_ROWS for row in range(103)], [0, 1]],
    "many bags": [[row % NUM_ROWS] * (row % 4) for row in range(70)],
}


def jagged(bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = [row for bag in bags for row in bag]
    lengths = torch.tensor([0, *map(len, bags)], device=DEVICE)
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE), lengths.cumsum(0)


def like(bags: list[list[int]], weights: Tensor) -> list[list[float]]:
    """One weight an id, cut into the bags."""
    pieces = weights.double().cpu().split([len(bag) for bag in bags])
    return [piece.tolist() for piece in pieces]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [1, 3, 20, 128])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_bags(layout: str, dim: int, pooling: str, is_weighted: bool) -> None:
    bags, generator = LAYOUTS[layout], torch.Generator().manual_seed(0)
    rows, offsets = jagged(bags)
    weight = draw(generator, NUM_ROWS, dim)
    weights = draw(generator, len(rows)) if is_weighted else None
    bag_weights = None if weights is None else like(bags, weights)
    exact = oracles.pooled_lookup(weight.double().cpu().numpy(), bags, bag_weights, pooling)
    found = pooled_lookup(weight, rows, offsets, weights, pooling == "mean", torch.float32)
    assert_near(found, torch.from_numpy(exact))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(table_dtype: torch.dtype, out_dtype: torch.dtype, index_dtype: torch.dtype) -> None:
    bags, generator = LAYOUTS["skew"], torch.Generator().manual_seed(0)
    rows, offsets = (x.to(index_dtype) for x in jagged(bags))
    weight = draw(generator, NUM_ROWS, 20).to(table_dtype)
    weights = draw(generator, len(rows)).to(table_dtype)
    exact = oracles.pooled_lookup(
        weight.double().cpu().numpy(), bags, like(bags, weights), pooling="mean"
    )
    found = pooled_lookup(weight, rows, offsets, weights, True, out_dtype)
    assert found.dtype == out_dtype
    assert_near(found, torch.from_numpy(exact))


@pytest.mark.parametrize("dim", [1, 3, 20, 128])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_single_ids(dim: int, is_weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = [5, 5, 0, 8, *range(NUM_ROWS)] * 2
    rows, weight = torch.tensor(ids, device=DEVICE), draw(generator, NUM_ROWS, dim)
    weights = draw(generator, len(ids)) if is_weighted else None
    bags = [[row] for row in ids]
    exact = oracles.pooled_lookup(
        weight.double().cpu().numpy(), bags, None if weights is None else like(bags, weights)
    )
    assert_near(
        pooled_lookup(weight, rows, None, weights, False, torch.float32), torch.from_numpy(exact)
    )


def test_no_bags() -> None:
    none = torch.empty(0, dtype=torch.int32, device=DEVICE)
    weight, start = torch.ones(2, 3, device=DEVICE), torch.zeros(1, dtype=torch.int64).to(DEVICE)
    for offsets in (None, start):
        found = pooled_lookup(weight, none, offsets, None, False, torch.float32)
        assert found.shape == (0, 3)


def test_a_copy_is_exact() -> None:
    weight = draw(torch.Generator().manual_seed(0), NUM_ROWS, 20)
    rows = torch.arange(NUM_ROWS, device=DEVICE).flip(0)
    found = pooled_lookup(weight, rows, None, None, False, torch.float32)
    np.testing.assert_array_equal(found.cpu().numpy(), weight.flip(0).cpu().numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_segments_by_hand(layout: str) -> None:
    bags = LAYOUTS[layout]
    _, offsets = jagged(bags)
    expected = [bag for bag, ids in enumerate(bags) for _ in ids]
    assert segment_of(offsets, len(expected)).tolist() == expected


@pytest.mark.parametrize("is_single", [True, False])
def test_rows_of_the_stack_by_hand(is_single: bool) -> None:
    # two features of two bags, whose tables begin at rows 10 and 100
    starts = torch.tensor([10, 100], dtype=torch.int32, device=DEVICE)
    ids = torch.tensor([1, 2, 3, 4], dtype=torch.int32, device=DEVICE)
    if is_single:
        assert stack_rows(ids, None, starts).tolist() == [11, 12, 103, 104]
    else:
        lengths = torch.tensor([0, 1, 3, 0], dtype=torch.int32, device=DEVICE)
        assert stack_rows(ids, lengths, starts).tolist() == [11, 102, 103, 104]
