import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.data.keys import stream, uniforms
from fastdlrm.data.trace import Profile, Profiler, TraceGenerator
from fastdlrm.errors import DataError
from tests import stack_distance as slow

RULES = ("paper", "padded", "deferred")
TOY = [1, 2, 3, 4, 5, 3, 4, 1, 1, 6, 3]


def _profile(trace, *cuts):
    profiler = Profiler()
    for piece in np.split(np.asarray(trace, dtype=np.uint64), cuts):
        profiler.add(piece)
    return profiler.profile()


def _counts(profile, num_accesses):
    counts = np.rint(np.diff(profile.cumulative, prepend=0) * num_accesses).astype(int)
    return dict(zip(profile.distances.tolist(), counts.tolist(), strict=True))


def _by_hand(ids, distances, cumulative):
    return Profile(
        ids=np.array(ids, dtype=np.uint64),
        distances=np.array(distances),
        cumulative=np.array(cumulative, dtype=np.float64),
    )


def test_a_profile_by_hand():
    """Stack after 1 2 3 4 5, top last: 3 lies 3 deep -> 1 2 4 5 3; 4 is 3 deep -> 1 2 5 3 4; 1 is 5
    deep -> 2 5 3 4 1; 1 is 1 deep; 6 is new -> 2 5 3 4 1 6; 3 is 4 deep."""
    profile = _profile(TOY)
    assert profile.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert _counts(profile, 11) == {0: 6, 1: 1, 3: 2, 4: 1, 5: 1}
    assert profile.cumulative == pytest.approx([6 / 11, 7 / 11, 9 / 11, 10 / 11, 1])
    assert profile.mean_distance == pytest.approx((1 + 3 + 3 + 4 + 5) / 11)


def test_a_generated_trace_by_hand():
    """Distance 0 for units up to 1/2, 2 up to 1, over the ids 7 8 9.

    paper: nothing used yet, so all is new: 7. One used, 2 is too deep: 8. Two used: 0.9 is distance
    2, of 9 7 8 the 7 -> 9 8 7. 0.2 is new: the front, 9 -> 8 7 9. 0.3 is new, the front: 8.
    deferred: 0.1 new 7. 0.9 is 2 deep, kept for later, new: 8. 0.9 is distance 2: 7 -> 9 8 7. 0.2
    is new, but a 2 waits: the second from the back of 9 8 7, 8 -> 9 7 8. 0.3 new: 9.
    """
    profile = _by_hand([7, 8, 9], [0, 2], [0.5, 1])
    units = [0.1, 0.9, 0.9, 0.2, 0.3]
    found = slow.SlowProfile([7, 8, 9], {0: 1, 2: 1})
    assert slow.generate(found, units, "paper") == [7, 8, 7, 9, 8]
    assert slow.generate(found, units, "deferred") == [7, 8, 7, 8, 9]
    for seed in range(20):
        drawn = uniforms(stream(seed, "trace"), 0, 40).tolist()
        for rule in ("paper", "deferred"):
            trace = TraceGenerator(profile, seed, rule).draw(40).tolist()
            assert trace == slow.generate(found, drawn, rule)


def test_padding_by_hand():
    """11 accesses, the deepest 5: ceil(11 / 5) = 3 more new ids, 9 of 14."""
    padded = _profile(TOY).padded()
    assert padded.cumulative == pytest.approx([9 / 14, 10 / 14, 12 / 14, 13 / 14, 1])


def test_a_trace_without_repeats_has_nothing_to_pad():
    profile = _profile([5, 6, 7])
    assert profile.padded() is profile
    assert TraceGenerator(profile, 1, "padded").draw(6).tolist() == [5, 6, 7, 5, 6, 7]


traces = st.lists(st.integers(0, 12), min_size=1, max_size=200) | st.lists(
    st.integers(0, 2**64 - 1), min_size=1, max_size=60
)


@settings(deadline=None, max_examples=100)
@given(trace=traces, cut=st.integers(0, 200))
def test_the_slow_profile_is_the_same(trace, cut):
    expected = slow.profile(trace)
    profile = _profile(trace, min(cut, len(trace)))
    assert profile.ids.tolist() == expected.ids
    distances, shares = slow.cumulative(expected)
    assert profile.distances.tolist() == distances
    assert profile.cumulative.tolist() == shares


@settings(deadline=None, max_examples=100)
@given(
    trace=traces,
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 2**64 - 1),
    length=st.integers(0, 300),
)
def test_the_slow_trace_is_the_same(trace, rule, seed, length):
    units = uniforms(stream(seed, "trace"), 0, length).tolist()
    expected = slow.generate(slow.profile(trace), units, rule)
    assert TraceGenerator(_profile(trace), seed, rule).draw(length).tolist() == expected


def test_many_ids_make_the_tables_grow():
    """More ids than the first tables hold, more slots than one block of the tree."""
    draw = np.random.default_rng(3)
    trace = np.concatenate([draw.permutation(3000), draw.integers(0, 3000, 2000)])
    profile = _profile(trace)
    expected = slow.profile(trace.tolist())
    assert profile.ids.tolist() == expected.ids
    assert _counts(profile, 5000) == expected.counts
    units = uniforms(stream(8, "trace"), 0, 5000).tolist()
    for rule in RULES:
        generated = TraceGenerator(profile, 8, rule).draw(5000).tolist()
        assert generated == slow.generate(expected, units, rule)


@pytest.mark.parametrize("rule", RULES)
def test_a_trace_goes_on_from_sample_to_sample(rule):
    """The reference starts anew at every sample, so that no id is used again by the next."""
    profile = _profile(np.random.default_rng(1).integers(0, 50, 2000))
    whole = TraceGenerator(profile, 5, rule).draw(1000)
    generator = TraceGenerator(profile, 5, rule)
    samples = [generator.draw(size) for size in [1, 0, 9, 90, 900]]
    assert np.concatenate(samples).tolist() == whole.tolist()


def test_repeats_within_a_sample_are_kept():
    """The reference removes them from each sample. Half of these accesses repeat the last id."""
    ids = TraceGenerator(_by_hand([3, 4], [0, 1], [0.5, 1]), 1).draw(1000)
    assert 0.4 < (ids[1:] == ids[:-1]).mean() < 0.6


def test_seeds_give_different_traces():
    profile = _profile(np.random.default_rng(1).integers(0, 50, 2000))
    first, second = (TraceGenerator(profile, seed).draw(500) for seed in (1, 2))
    assert (first != second).mean() > 0.5


def test_an_empty_trace_has_no_profile():
    with pytest.raises(DataError, match=r"ids\.txt: no id in it; a profile needs at least one"):
        Profiler().profile("ids.txt")
