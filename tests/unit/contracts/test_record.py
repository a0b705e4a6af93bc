"""Training records as they are read."""

import pytest

from fastdlrm.contracts.record import read_records
from fastdlrm.errors import DataError

LINE = '{"step": 5, "kind": "train", "values": {"loss": 0.5}, "timing": {"samples_per_s": 9}}\n'


def test_a_record_and_a_line_that_is_still_being_written(tmp_path):
    (tmp_path / "records.jsonl").write_text(LINE + LINE[:30])
    (record,) = read_records(tmp_path)
    assert (record.step, record.kind) == (5, "train")
    assert (record.values, record.timing) == ({"loss": 0.5}, {"samples_per_s": 9.0})


@pytest.mark.parametrize("bad", ["{}\n", "not json\n", '{"step": "a"}\n'])
def test_a_damaged_line_is_named(tmp_path, bad):
    (tmp_path / "records.jsonl").write_text(LINE + bad)
    with pytest.raises(DataError, match=r"records.jsonl, line 2: damaged: .*delete the line"):
        read_records(tmp_path)


def test_without_a_record_there_is_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match=r"records.jsonl: no record yet; train for train.log_every"):
        read_records(tmp_path)
