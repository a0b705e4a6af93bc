"""Results of `fastdlrm eval --out` as they are written and read."""

import msgspec
import numpy as np
import pytest

from fastdlrm.errors import ConfigError, DataError
from fastdlrm.metrics.eval_result import (
    EvalResult,
    check_output,
    read_eval_result,
    write_eval_result,
)
from fastdlrm.metrics.evaluation import Evaluation


@pytest.fixture
def result() -> EvalResult:
    state = Evaluation()
    state.update(np.array([-1.0, 0.5, 2.0], np.float32), np.array([0, 0, 1], np.float32))
    return EvalResult(
        created_by="0",
        commit="a",
        started="2026-01-02T03:04:05+00:00",
        run="RUN",
        step=7,
        data="DATA",
        split="test",
        config={"seed": 1},
        machine="M",
        values=state.compute(),
    )


def test_what_is_written_is_read(tmp_path, result):
    write_eval_result(tmp_path / "new" / "eval.json", result)
    assert read_eval_result(tmp_path / "new" / "eval.json") == result


def test_another_version_is_refused(tmp_path, result):
    path = tmp_path / "eval.json"
    write_eval_result(path, msgspec.structs.replace(result, version=2))
    with pytest.raises(DataError, match=r"\('eval', 2\), wanted \('eval', 1\); run `fastdlrm eva"):
        read_eval_result(path)


def test_a_damaged_result_is_refused(tmp_path):
    (tmp_path / "eval.json").write_text('{"kind": "eval"}')
    with pytest.raises(DataError, match=r"eval.json: damaged: .*run `fastdlrm eval` again"):
        read_eval_result(tmp_path / "eval.json")


def test_a_folder_is_refused(tmp_path):
    check_output(tmp_path / "eval.json")
    with pytest.raises(ConfigError, match=r"--out .*: a folder; name the JSON file to write"):
        check_output(tmp_path)
