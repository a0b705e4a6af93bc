"""Blocks of shared memory never overlap, and what is freed is whole again."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.serve.arena import ALIGNMENT, Arena, attach


@pytest.fixture
def arena():
    made = Arena(1 << 16)
    yield made
    made.close()


def test_what_is_written_is_read_by_another_mapping(arena):
    block = arena.allocate(100)
    arena.view(block, 5)[:] = b"hello"
    view = attach(os.dup(arena.fd))
    assert bytes(view[block : block + 5]) == b"hello"
    with pytest.raises(TypeError):
        view[0] = 1


def test_it_is_full_in_the_end_and_whole_when_all_is_freed(arena):
    blocks = []
    while (block := arena.allocate(1000)) is not None:
        blocks.append(block)
    assert len(blocks) == arena.size // 1024  # 1000 bytes take 16 lines of 64
    assert arena.num_used == len(blocks) * 1024
    for block in blocks[::2] + blocks[1::2]:
        arena.free(block)
    assert arena.num_used == 0
    assert arena.allocate(arena.size) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_blocks_never_overlap(steps):
    arena = Arena(1 << 14)
    used: dict[int, int] = {}
    for is_free, size in steps:
        if is_free and used:
            start = sorted(used)[size % len(used)]
            del used[start]
            arena.free(start)
            continue
        start = arena.allocate(size)
        if start is None:
            continue
        assert start % ALIGNMENT == 0
        assert start + size <= arena.size
        for other, length in used.items():
            assert start + size <= other or other + length <= start
        used[start] = size
    for start in used:
        arena.free(start)
    assert arena.allocate(arena.size) == 0
    arena.close()
