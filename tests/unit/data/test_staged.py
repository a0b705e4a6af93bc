"""Staged rows, and how they are cut into spans."""

import pickle
from pathlib import Path

import pyarrow as pa

from fastdlrm.data.staged import SPAN_ROW_GROUPS, spans
from tests.staging import staged


def test_spans_by_hand() -> None:
    assert SPAN_ROW_GROUPS == 32
    assert spans([1, 0, 2]) == [range(1), range(1, 3)]
    # 70 row groups are three spans of 23 or 24; 32 are one.
    assert spans([70, 32]) == [range(23), range(23, 46), range(46, 70), range(70, 102)]
    assert spans([]) == []


def test_rows_can_be_pickled(tmp_path: Path) -> None:
    rows = staged(tmp_path, {"s.a": pa.array(range(5))}, {"s.a": pa.array(range(5, 9))})
    list(rows.blocks(["s.a"]))
    again = pickle.loads(pickle.dumps(rows))
    assert again.chunks == rows.chunks
    found = [i for block in again.blocks(["s.a"]) for i in block.rows.column(0).to_pylist()]
    assert found == list(range(9))
