"""Slices and joins of batches, held against bags written out as lists."""

from itertools import pairwise

import pytest
import torch

from fastdlrm.batch import Batch, SparseBatch

Bags = list[list[list[int]]]
"""Bags of ids, by feature and sample."""

SINGLE: Bags = [[[1], [2], [3], [4]], [[5], [6], [7], [8]]]
JAGGED: Bags = [[[1, 2], [], [3], [4, 5, 6]], [[], [7], [], [8, 9]]]


def sparse_of(bags: Bags, weighted: bool = False, single: bool = False) -> SparseBatch:
    """Feature-major ids; the weight of id i is i / 2."""
    ids = [i for feature in bags for bag in feature for i in bag]
    lengths = torch.tensor([len(bag) for feature in bags for bag in feature], dtype=torch.int32)
    weights = torch.tensor([i / 2 for i in ids], dtype=torch.float32)
    return SparseBatch(
        ids=torch.tensor(ids, dtype=torch.int64),
        lengths=None if single else lengths,
        weights=weights if weighted else None,
        num_features=len(bags),
    )


def bags_of(batch: SparseBatch) -> Bags:
    """Read a batch back by its offsets."""
    ids, offsets = batch.ids.tolist(), batch.offsets().tolist()
    bags = [ids[start:stop] for start, stop in pairwise(offsets)]
    B = batch.num_samples
    return [bags[f * B : (f + 1) * B] for f in range(batch.num_features)]


def batch_of(bags: Bags, *, weighted: bool = False, single: bool = False) -> Batch:
    B = len(bags[0])
    return Batch(
        dense=torch.arange(2.0 * B).view(B, 2),
        sparse=sparse_of(bags, weighted, single),
        labels=torch.arange(B) % 2.0,
    )


CASES = pytest.mark.parametrize(
    ("bags", "weighted", "single"),
    [
        (SINGLE, False, True),
        (SINGLE, True, True),
        (SINGLE, False, False),
        (JAGGED, False, False),
        (JAGGED, True, False),
    ],
    ids=["single", "single weighted", "lengths of one", "jagged", "jagged weighted"],
)


def test_offsets_by_hand() -> None:
    # Lengths 2 0 1 3 of feature 0, then 0 1 0 2 of feature 1.
    assert sparse_of(JAGGED).offsets().tolist() == [0, 2, 2, 3, 6, 6, 7, 7, 9]
    assert sparse_of(SINGLE, single=True).offsets().tolist() == list(range(9))
    assert sparse_of(JAGGED).offsets().dtype == torch.int64


def test_slice_by_hand() -> None:
    part = sparse_of(JAGGED, weighted=True).slice(1, 3)
    # Samples 1 and 2: bags [] [3] of feature 0, [7] [] of feature 1; a weight is half its id.
    assert part.ids.tolist() == [3, 7]
    assert part.weights is not None and part.weights.tolist() == [1.5, 3.5]
    assert part.lengths is not None and part.lengths.tolist() == [0, 1, 1, 0]
    assert part.num_samples == 2
    single = sparse_of(SINGLE, single=True).slice(1, 3)
    assert single.ids.tolist() == [2, 3, 6, 7]
    assert single.lengths is None


@CASES
def test_every_slice_holds_its_bags(bags: Bags, weighted: bool, single: bool) -> None:
    whole = sparse_of(bags, weighted, single)
    for start in range(5):
        for stop in range(start, 5):
            part = whole.slice(start, stop)
            assert part.num_samples == stop - start
            assert bags_of(part) == [feature[start:stop] for feature in bags]
            if weighted:
                assert part.weights is not None
                torch.testing.assert_close(part.weights, part.ids / 2, check_dtype=False)


@CASES
@pytest.mark.parametrize("cuts", [(0, 4), (0, 1, 4), (0, 2, 2, 4), (0, 1, 2, 3, 4)])
def test_slices_join_to_the_whole(
    bags: Bags, weighted: bool, single: bool, cuts: tuple[int, ...]
) -> None:
    whole = batch_of(bags, weighted=weighted, single=single)
    parts = [whole.slice(a, b) for a, b in pairwise(cuts)]
    joined = Batch.concat(parts)
    assert joined.num_samples == whole.num_samples == 4
    torch.testing.assert_close(joined.dense, whole.dense, rtol=0, atol=0)
    torch.testing.assert_close(joined.labels, whole.labels, rtol=0, atol=0)
    assert bags_of(joined.sparse) == bags
    assert (joined.sparse.lengths is None) == single
    assert (joined.sparse.weights is None) == (not weighted)
    if weighted:
        torch.testing.assert_close(joined.sparse.weights, whole.sparse.weights, rtol=0, atol=0)


def test_joining_single_and_jagged_gives_jagged() -> None:
    joined = SparseBatch.concat([sparse_of(SINGLE, single=True), sparse_of(JAGGED)])
    assert bags_of(joined) == [SINGLE[0] + JAGGED[0], SINGLE[1] + JAGGED[1]]
    assert joined.lengths is not None
    assert joined.lengths.dtype == torch.int32


def test_joining_with_an_unweighted_batch_gives_it_ones() -> None:
    first, second = sparse_of([[[4], [6, 8]]], weighted=True), sparse_of([[[], [2]]])
    joined = SparseBatch.concat([first, second])
    assert joined.weights is not None
    assert joined.weights.tolist() == [2.0, 3.0, 4.0, 1.0]
    assert SparseBatch.concat([second, first]).weights.tolist() == [1.0, 2.0, 3.0, 4.0]  # type: ignore[union-attr]


@pytest.mark.parametrize("jagged", [False, True])
def test_no_sparse_feature(jagged: bool) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    sparse = SparseBatch(
        ids=none, lengths=none.int() if jagged else None, weights=None, num_features=0
    )
    batch = Batch(dense=torch.arange(6.0).view(3, 2), sparse=sparse, labels=torch.zeros(3))
    assert batch.num_samples == 3
    assert sparse.num_samples == 0
    parts = [batch.slice(0, 1), batch.slice(1, 3)]
    assert [part.num_samples for part in parts] == [1, 2]
    joined = Batch.concat(parts)
    torch.testing.assert_close(joined.dense, batch.dense)
    assert joined.sparse.num_features == 0


def test_no_dense_feature() -> None:
    batch = Batch(dense=torch.zeros(4, 0), sparse=sparse_of(JAGGED), labels=torch.zeros(4))
    assert batch.num_samples == 4
    assert batch.slice(1, 3).num_samples == 2


@CASES
@pytest.mark.parametrize("features", [[0], [1], [1, 0], [0, 1]])
def test_some_features(bags: Bags, weighted: bool, single: bool, features: list[int]) -> None:
    found = sparse_of(bags, weighted, single).of_features(torch.tensor(features))
    expected = sparse_of([bags[f] for f in features], weighted, single)
    assert found.num_features == len(features)
    assert bags_of(found) == bags_of(expected)
    assert (found.lengths is None) == single
    for one, other in ((found.lengths, expected.lengths), (found.weights, expected.weights)):
        assert one is other is None or torch.equal(one, other)


@CASES
def test_to_a_device_keeps_everything(bags: Bags, weighted: bool, single: bool) -> None:
    batch = batch_of(bags, weighted=weighted, single=single)
    moved = batch.to("meta")
    for tensor in (moved.dense, moved.labels, moved.sparse.ids):
        assert tensor.device.type == "meta"
    assert (moved.sparse.lengths is None) == single
    assert (moved.sparse.weights is None) == (not weighted)
    assert bags_of(batch.to("cpu").sparse) == bags


@pytest.mark.gpu
@CASES
def test_pinned_batches_go_to_the_gpu_and_back(bags: Bags, weighted: bool, single: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pinned = batch_of(bags, weighted=weighted, single=single).pin()
    tensors = (pinned.dense, pinned.labels, pinned.sparse.ids)
    optional = (pinned.sparse.lengths, pinned.sparse.weights)
    assert all(t.is_pinned() for t in (*tensors, *(t for t in optional if t is not None)))
    assert bags_of(pinned.to("cuda", non_blocking=True).to("cpu").sparse) == bags


def buffered(B: int, N: int, F: int) -> Batch:
    """A batch with a buffer, all its numbers different."""
    batch = Batch.allocate(B, N, F)
    batch.sparse.ids.copy_(torch.arange(F * B))
    batch.dense.copy_(torch.arange(B * N).view(B, N) / 4)
    batch.labels.copy_(torch.arange(B) % 2)
    return batch


def assert_equal(found: Batch, expected: Batch) -> None:
    for a, b in (
        (found.sparse.ids, expected.sparse.ids),
        (found.dense, expected.dense),
        (found.labels, expected.labels),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert found.sparse.num_features == expected.sparse.num_features
    assert found.sparse.lengths is None
    assert found.sparse.weights is None


def test_a_buffer_is_laid_out_as_documented() -> None:
    # ids 26 * 100 * 4 = 10,400 bytes, up to 41 * 256 = 10,496; dense 100 * 13 * 4 = 5,200 bytes,
    # up to 21 * 256 = 5,376 more = 15,872; labels 100 * 4 = 400 bytes, up to 512 more = 16,384.
    batch = buffered(100, 13, 26)
    assert batch.buffer is not None
    assert batch.buffer.dtype == torch.uint8
    assert batch.buffer.shape == (16_384,)
    assert batch.sparse.ids.dtype == torch.int32
    assert batch.sparse.ids.shape == (2600,)
    assert batch.dense.shape == (100, 13)
    assert batch.labels.shape == (100,)
    content = batch.buffer.numpy().tobytes()
    assert content[:10_400] == batch.sparse.ids.numpy().tobytes()
    assert content[10_496:15_696] == batch.dense.numpy().tobytes()
    assert content[15_872:16_272] == batch.labels.numpy().tobytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 13, 26), (64, 0, 3), (64, 3, 0), (0, 13, 26)])
def test_copying_a_buffer_copies_the_batch(shape: tuple[int, int, int]) -> None:
    batch, static = buffered(*shape), Batch.allocate(*shape)
    assert static.buffer is not None
    assert batch.buffer is not None
    static.buffer.copy_(batch.buffer)
    assert_equal(static, batch)
    assert_equal(batch.to("cpu"), batch)
    assert batch.num_samples == shape[0]


def test_a_batch_with_a_buffer_moves_as_one() -> None:
    moved = buffered(7, 13, 26).to("meta")
    assert moved.buffer is not None
    for tensor in (moved.dense, moved.labels, moved.sparse.ids, moved.buffer):
        assert tensor.device.type == "meta"
    assert moved.dense.shape == (7, 13)


def test_slices_and_joins_have_no_buffer() -> None:
    batch = buffered(7, 2, 3)
    parts = [batch.slice(0, 3), batch.slice(3, 7)]
    joined = Batch.concat(parts)
    assert [part.buffer for part in (*parts, joined)] == [None] * 3
    assert_equal(joined, batch)


@pytest.mark.gpu
def test_a_pinned_buffer_goes_to_the_gpu_and_back() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batch = buffered(100, 13, 26)
    pinned = batch.pin()
    allocated = Batch.allocate(100, 13, 26, pin=True)
    static = Batch.allocate(100, 13, 26, device="cuda")
    for one in (pinned, allocated):
        assert one.buffer is not None
        assert one.buffer.is_pinned()
    assert static.buffer is not None
    assert pinned.buffer is not None
    assert_equal(pinned.to("cuda", non_blocking=True).to("cpu"), batch)
    static.buffer.copy_(pinned.buffer, non_blocking=True)
    assert_equal(static.to("cpu"), batch)


@pytest.mark.parametrize("has_buffer", [True, False])
def test_memory_for_another_batch_of_the_same_shape(has_buffer: bool) -> None:
    lengths = torch.tensor([1, 0, 2, 1], dtype=torch.int32)
    sparse = SparseBatch(
        ids=torch.arange(4, dtype=torch.int32), lengths=lengths, weights=None, num_features=2
    )
    bags = Batch(dense=torch.ones(2, 3), sparse=sparse, labels=torch.ones(2))
    batch = Batch.allocate(2, 3, 2) if has_buffer else bags
    other = batch.empty_like("cpu")
    for one, made in (
        (batch.dense, other.dense),
        (batch.labels, other.labels),
        (batch.sparse.ids, other.sparse.ids),
    ):
        assert (one.shape, one.dtype) == (made.shape, made.dtype)
        assert one.data_ptr() != made.data_ptr()
    assert (other.buffer is not None) == has_buffer
    assert (other.sparse.lengths is None) == has_buffer
    assert other.sparse.weights is None
