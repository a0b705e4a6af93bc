import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.data.recency import BLOCK, copy_to, depth_at, index_type, new_stack, push, slot_at


def _use(stack, entry):
    push(stack, entry, stack.place[entry])


def _contents(stack, num_entries):
    """From the top."""
    slots = [slot_at(stack, depth) for depth in range(1, num_entries + 1)]
    assert [stack.place[stack.owner[slot]] for slot in slots] == slots
    return [stack.owner[slot] for slot in slots]


def test_a_stack_by_hand():
    stack = new_stack(3)
    assert depth_at(stack, stack.place[0]) == 0
    for entry in (0, 1, 2, 0):
        _use(stack, entry)
    assert _contents(stack, 3) == [0, 2, 1]  # used last, before, before that
    assert [depth_at(stack, stack.place[entry]) for entry in (0, 1, 2)] == [1, 3, 2]


@settings(deadline=None, max_examples=30)
@given(
    num_entries=st.integers(1, 700),
    seed=st.integers(0, 2**32 - 1),
    num_uses=st.integers(1, 4000),
)
def test_a_list_does_the_same(num_entries, seed, num_uses):
    """Long enough for the line of slots to be moved down several times."""
    draw = np.random.default_rng(seed)
    stack, top_last = new_stack(num_entries), []
    for entry in draw.integers(0, num_entries, num_uses).tolist():
        depth = top_last[::-1].index(entry) + 1 if entry in top_last else 0
        assert depth_at(stack, stack.place[entry]) == depth
        if depth:
            top_last.remove(entry)
        _use(stack, entry)
        top_last.append(entry)
    assert _contents(stack, len(top_last)) == top_last[::-1]


@pytest.mark.parametrize("num_entries", [1, BLOCK // 2, BLOCK, 3 * BLOCK + 1])
def test_a_copy_has_the_order(num_entries):
    stack, larger = new_stack(num_entries), new_stack(4 * num_entries)
    for entry in range(num_entries):
        _use(stack, entry)
    for entry in range(0, num_entries, 3):
        _use(stack, entry)
    copy_to(stack, larger)
    assert _contents(larger, num_entries) == _contents(stack, num_entries)


def test_the_line_of_slots_stays_as_long_as_it_is():
    stack = new_stack(10)
    assert len(stack.owner) == BLOCK
    for use in range(50 * BLOCK):
        _use(stack, use % 10)
    assert stack.state[0] <= BLOCK
    assert _contents(stack, 10) == [(50 * BLOCK - 1 - k) % 10 for k in range(10)]


def test_slots_of_very_many_entries_take_64_bits():
    """2**30 entries have 2**31 slots, one more than 32 bits with a sign hold."""
    assert index_type(2**29) == np.int32
    assert index_type(2**30) == np.int64
