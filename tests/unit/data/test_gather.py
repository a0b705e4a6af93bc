import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.gather import find_runs
from fastdlrm.data.rows import Rows
from fastdlrm.errors import DataError

SCHEMA = Schema(
    label=Label(column="y", positive=("1",), negative=("0",)),
    dense=(DenseFeature(name="d", column="d", transform="none", fill=0.0),),
    sparse=(SparseFeature(name="a", column="a", table="t", key="int"),),
    tables=(Table(name="t", encoding="hash", min_count=1, max_rows=50),),
)
STARTS = np.array([0, 10, 11, 30])
"""Chunks of 10, 1 and 19 rows."""


def _runs(rows: list[int]) -> list[tuple[int, int, int]]:
    chunk, first, length = find_runs(np.array(rows, dtype=np.int64), STARTS)
    return list(zip(chunk.tolist(), first.tolist(), length.tolist(), strict=True))


def test_runs_by_hand() -> None:
    # Rows 7..13 cross both borders: chunk 0 from row 7, chunk 1 whole, chunk 2 from row 0.
    assert _runs([7, 8, 9, 10, 11, 12, 13, 2, 3]) == [
        (0, 7, 3),
        (1, 0, 1),
        (2, 0, 3),
        (0, 2, 2),
    ]


def test_scattered_rows_are_runs_of_one() -> None:
    # Two breaks in five rows: 2.5 rows a run are too few to join.
    assert _runs([29, 0, 1, 2, 10]) == [(2, 18, 1), (0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 0, 1)]


def test_no_row_has_no_run() -> None:
    assert _runs([]) == []


@pytest.mark.parametrize("row", [-1, 30])
def test_positions_outside_are_refused(row: int) -> None:
    with pytest.raises(IndexError, match="a row's position is outside the split"):
        _runs([0, row])


def _part(**changes: pa.Array) -> pa.RecordBatch:
    columns = {
        "label": pa.array([0, 1], pa.uint8()),
        "d": pa.array([0.5, 1.5], pa.float32()),
        "a": pa.array([3, 4], pa.uint16()),
    }
    return pa.record_batch(columns | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": pa.array([0.5, 1.5])}, "column 'd': type float64; float32, the same"),
        ({"a": pa.array([3, 4])}, "column 'a': type int64; uint8 or uint16 or uint32, the same"),
        ({"label": pa.array([0.0, 1.0], pa.float32())}, "column 'label': type float32; uint8"),
    ],
)
def test_types_that_encoding_never_gives_are_refused(
    change: dict[str, pa.Array], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Rows([_part(**change)], SCHEMA)


def test_a_type_that_changes_between_parts_is_refused() -> None:
    other = _part(a=pa.array([3, 4], pa.uint8()))
    with pytest.raises(DataError, match="type uint16 and uint8; uint8 or uint16"):
        Rows([_part(), other], SCHEMA)
