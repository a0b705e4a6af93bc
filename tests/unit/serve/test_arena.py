"""Blocks of shared memory: bounds, reuse, joining, and what a worker reads."""

import os
import random

import pytest

from fastdlrm.serve.arena import Arena, attach


@pytest.fixture
def arena():
    made = Arena(64 * 1024)
    yield made
    made.close()


def test_sizes_are_whole_pages():
    arena = Arena(1)
    assert arena.size == os.sysconf("SC_PAGE_SIZE")
    arena.close()


def test_a_full_arena_gives_none(arena):
    assert arena.allocate(64 * 1024) == 0
    assert arena.allocate(1) is None
    arena.free(0)
    assert arena.allocate(1) == 0


def test_freed_neighbours_become_one_block(arena):
    starts = [arena.allocate(16 * 1024) for _ in range(4)]
    assert starts == [0, 16384, 32768, 49152]
    for start in (starts[1], starts[3], starts[2]):
        arena.free(start)
    assert arena.allocate(48 * 1024) == 16384


def test_a_block_is_freed_once(arena):
    start = arena.allocate(10)
    arena.free(start)
    with pytest.raises(KeyError):
        arena.free(start)


def test_random_blocks_never_overlap_and_nothing_is_lost(arena):
    draw = random.Random(3)
    held: dict[int, int] = {}
    for _ in range(5000):
        if held and draw.random() < 0.5:
            start = draw.choice(list(held))
            assert bytes(arena.view(start, held[start])) == bytes([start // 64 % 251]) * held[start]
            arena.free(start)
            del held[start]
            continue
        size = draw.randint(1, 4000)
        start = arena.allocate(size)
        if start is None:
            assert arena.num_used + size > arena.size / 4
            continue
        assert start % 64 == 0
        arena.view(start, size)[:] = bytes([start // 64 % 251]) * size
        held[start] = size
    for start in held:
        arena.free(start)
    assert arena.num_used == 0
    assert arena.allocate(arena.size) == 0


def test_a_worker_reads_what_is_written_and_writes_nothing(arena):
    start = arena.allocate(100)
    seen = attach(os.dup(arena.fd))
    arena.view(start, 5)[:] = b"hello"
    assert bytes(seen[start : start + 5]) == b"hello"
    with pytest.raises(TypeError, match="read-only"):
        seen[0] = 1
