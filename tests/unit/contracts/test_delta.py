"""Deltas on disk: as written, or refused in words."""

import numpy as np
import pytest

from fastdlrm.contracts.delta import Delta, delta_path, read_delta, sequences, write_delta
from fastdlrm.errors import ExportError

IDS, ROWS = np.array([4, 1]), np.arange(6, dtype=np.float32).reshape(2, 3)


def test_round_trip(tmp_path):
    write_delta(tmp_path, Delta("a table", IDS, ROWS, 12, 1234.5, "c0ffee"))
    found = read_delta(delta_path(tmp_path, 12))
    assert found[0] == "a table"
    assert np.array_equal(found.ids, IDS)
    assert np.array_equal(found.rows, ROWS)
    assert found[3:] == (12, 1234.5, "c0ffee")
    (tmp_path / "notes.safetensors").touch()
    write_delta(tmp_path, Delta("a", IDS, ROWS, 3, 0.0))
    assert sequences(tmp_path) == [3, 12]
    assert sequences(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (Delta("a", IDS.astype(np.int32), ROWS, 1, 0.0), r"ids int32\(2,\) and rows float32"),
        (Delta("a", IDS, ROWS[:1], 1, 0.0), r"2 ids for rows \(1, 3\); one row an id"),
        (Delta("a", IDS, ROWS, 0, 0.0), r"sequence 0; 1 or more is allowed"),
        (Delta("a", np.array([1, 1]), ROWS, 1, 0.0), r"negative or stands twice"),
        (Delta("a", np.array([1, -1]), ROWS, 1, 0.0), r"negative or stands twice"),
        (Delta("a", IDS, ROWS * np.nan, 1, 0.0), r"a row holds NaN or infinity; write the delta"),
    ],
)
def test_what_no_table_can_hold_is_refused(tmp_path, delta, message):
    with pytest.raises(ExportError, match=message):
        write_delta(tmp_path, delta)
    assert list(tmp_path.iterdir()) == []


def test_a_delta_is_never_replaced(tmp_path):
    write_delta(tmp_path, Delta("a", IDS, ROWS, 1, 0.0))
    with pytest.raises(ExportError, match=r"000000001.safetensors: there is one already"):
        write_delta(tmp_path, Delta("b", IDS, ROWS, 1, 0.0))
    assert read_delta(delta_path(tmp_path, 1)).table == "a"


def test_damage_is_told(tmp_path):
    path = write_delta(tmp_path, Delta("a", IDS, ROWS, 1, 0.0))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ExportError, match=r"000000001.safetensors: no delta: .*; write it again"):
        read_delta(path)
    with pytest.raises(ExportError, match=r"000000002.safetensors: no delta"):
        read_delta(delta_path(tmp_path, 2))
