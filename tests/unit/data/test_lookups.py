"""Lookups by row against plain counting and sorting."""

from collections import Counter

import numpy as np
import pytest

from fastdlrm.data.lookups import CACHE_SHARES, Spectrum, most_frequent, row_counts
from fastdlrm.errors import DataError


def test_by_hand():
    # Rows by rank: 5, 3, 3, 1 lookups of 12; two rows are never looked up.
    found = Spectrum.of(np.array([3, 0, 5, 1, 0, 3], np.uint32)).popularity()
    assert (found.num_rows, found.num_used_rows, found.num_lookups) == (6, 4, 12)
    assert found.ranks == (1, 2, 3, 4)
    assert found.counts == (5, 3, 3, 1)
    assert found.hits == pytest.approx((5 / 12, 8 / 12, 11 / 12, 1))
    assert found.cache_hits == (0, 0, 0)  # 10 % of 6 rows is less than a row


def test_against_sorting():
    rng = np.random.default_rng(3)
    counts = rng.zipf(1.4, 3000).clip(0, 10**6).astype(np.uint32) - 1
    found = Spectrum.of(counts).popularity()
    ranked = sorted(counts.tolist(), reverse=True)
    total = sum(ranked)
    assert found.ranks[-1] == found.num_used_rows == sum(c > 0 for c in ranked)
    assert list(found.counts) == [ranked[rank - 1] for rank in found.ranks]
    assert list(found.hits) == pytest.approx([sum(ranked[:r]) / total for r in found.ranks])
    cached = [sum(ranked[: int(share * 3000)]) / total for share in CACHE_SHARES]
    assert list(found.cache_hits) == pytest.approx(cached)


def test_tables_together_are_one_table():
    first, second = np.array([4, 0, 1], np.uint32), np.array([2, 4], np.uint64)
    together = Spectrum.merged([Spectrum.of(first), Spectrum.of(second)])
    assert together.popularity() == Spectrum.of(np.array([4, 0, 1, 2, 4])).popularity()


def test_no_lookups():
    found = Spectrum.of(np.zeros(5, np.uint32)).popularity()
    assert (found.num_lookups, found.ranks, found.hits) == (0, (), ())
    assert found.cache_hits == (0, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_counts_equal_a_counter(dtype):
    parts = np.array_split(np.random.default_rng(1).integers(0, 50, 1000).astype(dtype), 3)
    counts = row_counts("C1", parts, 60)
    expected = Counter(int(i) for part in parts for i in part)
    assert counts.tolist() == [expected[row] for row in range(60)]


def test_an_id_that_is_no_row_is_refused():
    with pytest.raises(DataError, match=r"feature 'C1': id 7 >= num_embeddings 7: the part is not"):
        row_counts("C1", [np.array([1, 7, 9], np.uint8)], 7)


def test_most_frequent():
    counts = np.array([99, 98, 2, 5, 0, 5, 1], np.uint32)  # rows 0 and 1 are reserved
    assert most_frequent(counts, 3, 2).tolist() == [3, 5, 2]
    assert most_frequent(counts, 100, 2).tolist() == [3, 5, 2, 6]
    assert most_frequent(counts, 2, 0).tolist() == [0, 1]
    assert most_frequent(counts[:2], 3, 2).tolist() == []


def test_the_fewest_rows_of_a_share_of_the_lookups():
    # 5 rows: 40, 20, 20, 20 and 0 lookups of 100; 40 + 20 = 60 is the first to reach half
    spectrum = Spectrum.of(np.array([20, 40, 0, 20, 20]))
    assert [spectrum.rows_for(share) for share in (0.4, 0.5, 0.6, 0.61, 1.0)] == [1, 2, 2, 3, 4]
    assert Spectrum.of(np.zeros(3, dtype=np.int64)).rows_for(0.5) == 0
