import threading

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.schema import DenseFeature, Label, Schema
from fastdlrm.data.loader import Loader, SequentialLoader, prefetch
from fastdlrm.data.rows import Rows

SCHEMA = Schema(
    label=Label(column="y", positive=("1",), negative=("0",)),
    dense=(DenseFeature(name="row", column="row", transform="none", fill=0.0),),
    sparse=(),
    tables=(),
)


def _rows(num_rows: int) -> Rows:
    columns = {
        "label": pa.array(np.zeros(num_rows), pa.uint8()),
        "row": pa.array(np.arange(num_rows), pa.float32()),
    }
    return Rows([pa.record_batch(columns)], SCHEMA)


def _values(batches) -> list[list[float]]:
    return [batch.dense[:, 0].tolist() for batch in batches]


def _loader(num_rows: int = 103, **changes) -> Loader:
    settings = {"global_batch_size": 10, "seed": 1} | changes
    return Loader(_rows(num_rows), **settings)


def test_an_epoch_holds_every_row_once():
    batches = _values(_loader().epoch(0))
    assert [len(b) for b in batches] == [10] * 10 + [3]
    assert sorted(sum(batches, [])) == list(range(103))


def test_resume_gives_the_remaining_batches():
    loader = _loader()
    assert _values(loader.epoch(2, first_batch=4)) == _values(loader.epoch(2))[4:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_the_global_batches(world_size):
    whole = _values(_loader(block_rows=4).epoch(1))
    ranks = [
        _values(_loader(block_rows=4, rank=r, world_size=world_size).epoch(1))
        for r in range(world_size)
    ]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole


def test_epochs_and_seeds_differ():
    epochs = [_values(_loader(seed=s).epoch(e)) for s in (1, 2) for e in (0, 1)]
    assert all(a != b for i, a in enumerate(epochs) for b in epochs[:i])


def test_sequential_loader_keeps_the_order():
    batches = _values(SequentialLoader(_rows(25), 10))
    assert sum(batches, []) == list(range(25))


def test_an_error_in_the_thread_is_raised():
    def broken():
        yield from _rows(4).batches(2)
        raise ValueError("disk on fire")

    with pytest.raises(ValueError, match="disk on fire"):
        list(prefetch(broken()))


def test_batches_are_gathered_ahead():
    """The reference gathers a batch only when the last one has been trained on."""
    is_second_gathered = threading.Event()

    def batches():
        yield from _rows(2).batches(2)
        is_second_gathered.set()
        yield from _rows(2).batches(2)

    ahead = prefetch(batches())
    next(ahead)
    assert is_second_gathered.wait(timeout=60)
    ahead.close()


def test_closing_early_ends_the_thread():
    batches = _loader().epoch(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "fastdlrm-loader"]
