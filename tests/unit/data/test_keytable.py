from collections import Counter

import numpy as np
import pytest

from fastdlrm.data.keytable import KeyCounter, KeyTable


def test_ids_begin_at_two_and_unknown_keys_get_zero() -> None:
    table = KeyTable(np.array([7, 2**64 - 1, 0], np.uint64))
    ids = np.full(5, 99, np.uint8)
    table.write_ids(np.array([0, 7, 8, 2**64 - 1, 1], np.uint64), ids)
    assert ids.tolist() == [4, 2, 0, 3, 0]


def test_an_empty_vocabulary_knows_nothing() -> None:
    ids = np.full(2, 99, np.uint8)
    KeyTable(np.empty(0, np.uint64)).write_ids(np.array([0, 5], np.uint64), ids)
    assert ids.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_many_keys(dtype: type[np.unsignedinteger]) -> None:
    keys = np.arange(50_000, dtype=np.uint64) * np.uint64(2**40)  # alike in their low bits
    ids = np.empty(100_000, dtype)
    KeyTable(keys).write_ids(np.concatenate([keys, keys + np.uint64(1)]), ids)
    assert (ids[:50_000] == np.arange(2, 50_002)).all()
    assert (ids[50_000:] == 0).all()


def count(keys: np.ndarray, max_bytes: int) -> tuple[dict[int, int], int]:
    """Counts by key, and the number of passes."""
    counter, found, num_passes = KeyCounter(max_bytes), {}, 0
    while not counter.is_done:
        for part in np.array_split(keys, 7):
            counter.add(part)
        for key, number in zip(*(x.tolist() for x in counter.finish_pass()), strict=True):
            assert key not in found, "counted in two passes"
            found[key] = number
        num_passes += 1
    return found, num_passes


@pytest.mark.parametrize(("max_bytes", "fewest", "most"), [(1 << 24, 1, 1), (1 << 16, 8, 64)])
def test_counts_whatever_the_memory(max_bytes: int, fewest: int, most: int) -> None:
    # 20,000 draws from 10,000 keys; 64 KiB hold a table of 2,048 slots, so 1,280 keys, at most.
    drawn = np.random.default_rng(5).integers(0, 10_000, 20_000).astype(np.uint64)
    keys = drawn * np.uint64(0x9E3779B97F4A7C15)
    found, num_passes = count(keys, max_bytes)
    assert found == dict(Counter(keys.tolist()))
    assert fewest <= num_passes <= most


def test_counting_nothing() -> None:
    assert count(np.empty(0, np.uint64), 1 << 20) == ({}, 1)
