import itertools

import numpy as np
import pytest

from fastdlrm.contracts.hashing import mix
from fastdlrm.data.order import EpochOrder, rank_slice


@pytest.mark.parametrize(("num_rows", "block_rows"), [(1, 1), (10, 1), (10, 3), (12, 4), (7, 100)])
def test_every_row_once(num_rows, block_rows):
    rows = EpochOrder(num_rows, block_rows, seed=3, epoch=0).rows(0, num_rows)
    assert sorted(rows) == list(range(num_rows))


def test_blocks_stay_together():
    rows = EpochOrder(12, 4, seed=1, epoch=0).rows(0, 12)
    assert [list(b - b[0]) for b in rows.reshape(3, 4)] == [[0, 1, 2, 3]] * 3


def test_any_slice_is_part_of_the_whole():
    order = EpochOrder(103, 8, seed=5, epoch=2)
    whole = order.rows(0, 103)
    pieces = [order.rows(a, min(a + 10, 103)) for a in range(0, 103, 10)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_seed_and_epoch_change_the_order():
    orders = {
        tuple(EpochOrder(100, 1, seed, epoch).rows(0, 100)) for seed in (1, 2) for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_order_is_the_sorted_hash():
    # The definition, in plain Python: rows by mix(row ^ mix(mix(seed) ^ epoch)).
    key = mix(mix(7) ^ 3)
    expected = sorted(range(20), key=lambda row: mix(row ^ key))
    assert list(EpochOrder(20, 1, seed=7, epoch=3).rows(0, 20)) == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_ranks_share_a_batch_evenly(world_size):
    slices = [rank_slice(10, rank, world_size) for rank in range(world_size)]
    assert slices[0][0] == 0
    assert slices[-1][1] == 10
    assert all(a[1] == b[0] for a, b in itertools.pairwise(slices))
    sizes = [b - a for a, b in slices]
    assert max(sizes) - min(sizes) <= 1
