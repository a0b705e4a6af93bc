import pytest

from fastdlrm.contracts.bench_result import read_result, write_result
from fastdlrm.errors import DataError
from tests.unit.bench.results import made


def test_a_result_comes_back_as_it_was(tmp_path):
    result = made({"1": tuple(float(x) for x in range(1, 11))})
    path = tmp_path / "new" / "result.json"
    write_result(path, result)
    assert read_result(path) == result
    assert result.measurements[0].rounds[4] == (9.0, 10.0)


def test_a_folder_is_not_overwritten(tmp_path):
    with pytest.raises(DataError, match="a folder; name the JSON file to write"):
        write_result(tmp_path, made({"1": (1.0,) * 5}))


def test_what_is_no_result_is_refused(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(DataError, match="no such file; name a result written by"):
        read_result(path)
    for content in (
        b"[]",
        b'{"kind": "dataset", "version": 1}',
        b'{"kind": "bench", "version": 9}',
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"kind and version are .*, wanted"):
            read_result(path)
    for content in (b"{", b'{"kind": "bench", "version": 1}'):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged: .*; run the benchmark again"):
            read_result(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(DataError, match="run the benchmark again"):
        read_result(path)
