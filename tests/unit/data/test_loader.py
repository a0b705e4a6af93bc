import os
import threading

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.loader import Loader, SequentialLoader, default_workers
from fastdlrm.data.rows import Rows

SCHEMA = Schema(
    label=Label(column="y", positive=("1",), negative=("0",)),
    dense=(DenseFeature(name="row", column="row", transform="none", fill=0.0),),
    sparse=(),
    tables=(),
)


def _record_batch(num_rows: int) -> pa.RecordBatch:
    columns = {
        "label": pa.array(np.zeros(num_rows), pa.uint8()),
        "row": pa.array(np.arange(num_rows), pa.float32()),
    }
    return pa.record_batch(columns)


def _rows(num_rows: int) -> Rows:
    return Rows([_record_batch(num_rows)], SCHEMA)


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("fastdlrm-worker")]


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


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_change_nothing(num_workers):
    one = _loader(2003, block_rows=3, num_workers=1)
    several = _loader(2003, block_rows=3, num_workers=num_workers)
    assert _values(several.epoch(1)) == _values(one.epoch(1))
    assert _values(several.epoch(1, first_batch=17)) == _values(one.epoch(1))[17:]
    sequential = SequentialLoader(_rows(2003), 10, num_workers=num_workers)
    assert sum(_values(sequential), []) == list(range(2003))


def test_bags_are_gathered_by_several_workers_too():
    bags = [list(range(i % 4)) for i in range(50)]
    schema = Schema(
        label=SCHEMA.label,
        dense=SCHEMA.dense,
        sparse=(SparseFeature(name="b", column="b", table="t", key="int", bag=True),),
        tables=(Table(name="t", encoding="hash", min_count=1, max_rows=50),),
    )
    columns = {
        "label": pa.array([0] * 50, pa.uint8()),
        "row": pa.array(range(50), pa.float32()),
        "b": pa.array(bags, pa.list_(pa.uint8())),
    }
    rows = Rows([pa.record_batch(columns)], schema)
    batches = list(Loader(rows, 8, seed=1, num_workers=3).epoch(0))
    order = [int(row) for batch in batches for row in batch.dense[:, 0]]
    assert sorted(order) == list(range(50))
    lengths = [n for batch in batches for n in batch.sparse.lengths.tolist()]
    ids = [i for batch in batches for i in batch.sparse.ids.tolist()]
    assert lengths == [len(bags[row]) for row in order]
    assert ids == [i for row in order for i in bags[row]]


class _BrokenRows(Rows):
    """Fails from row 40 on."""

    def batch(self, rows, pin=False):
        if rows.start >= 40:
            raise ValueError("disk on fire")
        return super().batch(rows, pin)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_an_error_in_a_thread_is_raised_in_its_place(num_workers):
    rows = _BrokenRows([_record_batch(100)], SCHEMA)
    batches = iter(SequentialLoader(rows, 10, num_workers=num_workers))
    assert [next(batches).dense[0, 0] for _ in range(4)] == [0, 10, 20, 30]
    with pytest.raises(ValueError, match="disk on fire"):
        next(batches)
    assert not _threads()


class _WatchedRows(Rows):
    """Says when the second batch of two rows has been asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.is_second_gathered = threading.Event()

    def batch(self, rows, pin=False):
        found = super().batch(rows, pin)
        if rows.start >= 2:
            self.is_second_gathered.set()
        return found


def test_batches_are_gathered_ahead():
    """The reference gathers a batch only when the last one has been trained on."""
    rows = _WatchedRows([_record_batch(8)], SCHEMA)
    ahead = iter(SequentialLoader(rows, 2, num_workers=1))
    next(ahead)
    assert rows.is_second_gathered.wait(timeout=60)
    ahead.close()


def test_closing_early_ends_the_threads():
    batches = _loader(num_workers=3).epoch(0)
    next(batches)
    assert _threads()
    batches.close()
    assert not _threads()


def test_one_thread_gathers_where_the_cpu_computes():
    assert default_workers(pin=False) == 1
    assert 1 <= default_workers(pin=True) <= len(os.sched_getaffinity(0))
