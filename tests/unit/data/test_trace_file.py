import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.data.trace import Profiler
from fastdlrm.data.trace_file import (
    check_ids_path,
    in_order_of_features,
    read_feature,
    read_ids,
    read_profile,
    write_ids,
    write_profile,
)
from fastdlrm.errors import ConfigError, DataError

REFERENCE = "1, 2, 3, 4, 5, 6\n0, 1, 3, 4, 5\n0.55, 0.64, 0.82, 0.91, 1.0\n"
"""A profile as the reference lays it out, of the trace 1 2 3 4 5 3 4 1 1 6 3, rounded by hand."""


def _read(path):
    return np.concatenate(list(read_ids(path)))


def _profile(ids):
    profiler = Profiler()
    profiler.add(np.asarray(ids, dtype=np.uint64))
    return profiler.profile()


def _file(folder, content, name="ids.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_references_profile_is_read(tmp_path):
    profile = read_profile(_file(tmp_path, REFERENCE))
    assert profile.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert profile.distances.tolist() == [0, 1, 3, 4, 5]
    assert profile.cumulative.tolist() == [0.55, 0.64, 0.82, 0.91, 1.0]


def test_a_written_profile_is_three_lines_of_plain_numbers(tmp_path):
    """The reference writes `np.uint64(1)` under numpy 2, which it cannot read."""
    path = tmp_path / "profile.log"
    write_profile(path, _profile([7, 8, 7, 8]))
    assert path.read_text() == "7, 8\n0, 2\n0.5, 1.0\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("num_ids", [300, 900_000])
def test_a_profile_survives_writing_and_reading(tmp_path, num_ids):
    """Bit for bit, up to the largest id, lines of several pieces included."""
    draw = np.random.default_rng(1)
    profile = _profile(np.append(draw.integers(0, num_ids, 2 * num_ids, np.uint64), 2**64 - 1))
    write_profile(tmp_path / "p.log", profile)
    again = read_profile(tmp_path / "p.log")
    for name in ("ids", "distances", "cumulative"):
        assert getattr(again, name).tolist() == getattr(profile, name).tolist()


@pytest.mark.parametrize("text", ["3, 1, LAST\n", "3 1\r\n\r\nLAST", "3,1,LAST,\n"])
def test_ids_of_a_text_file(tmp_path, text):
    path = _file(tmp_path, text.replace("LAST", "18446744073709551615"))
    assert _read(path).tolist() == [3, 1, 2**64 - 1]


def test_a_profiles_lines_may_have_spaces_only(tmp_path):
    """A piece of a long line ends behind a number."""
    ids = " ".join(map(str, range(10**6, 2 * 10**6)))
    profile = read_profile(_file(tmp_path, f"{ids}\n0\n1\n"))
    assert (profile.ids == np.arange(10**6, 2 * 10**6)).all()


def test_a_long_line_is_read_in_pieces(tmp_path):
    """Numbers of every length, cut at any place."""
    ids = (np.arange(900_000) * 7919) % 10**7
    path = _file(tmp_path, ", ".join(map(str, ids.tolist())))
    assert len(list(read_ids(path))) > 1
    assert (_read(path) == ids).all()


@pytest.mark.parametrize("name", ["ids.txt", "ids.npy"])
def test_ids_survive_writing_and_reading(tmp_path, name):
    ids = np.random.default_rng(1).integers(0, 2**64 - 1, 1_000_000, dtype=np.uint64)
    path = tmp_path / "new" / name
    write_ids(path, [ids[:10], ids[10:10], ids[10:]], len(ids))
    assert (_read(path) == ids).all()
    assert list(path.parent.iterdir()) == [path]


def test_a_written_npy_file_is_numpys(tmp_path):
    write_ids(tmp_path / "ids.npy", [np.array([4, 5], dtype=np.uint64)], 2)
    loaded = np.load(tmp_path / "ids.npy")
    assert loaded.dtype == np.uint64
    assert loaded.tolist() == [4, 5]


def test_signed_ids_of_an_npy_file(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([1, 2, 1], dtype=np.int32))
    assert _read(tmp_path / "ids.npy").tolist() == [1, 2, 1]


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    def pieces():
        yield np.array([1], dtype=np.uint64)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_ids(tmp_path / "ids.npy", pieces(), 2)
    assert list(tmp_path.iterdir()) == []


def test_ids_of_a_features_bags():
    bags = pa.record_batch({"a": pa.array([[1, 2], [], [3]], pa.list_(pa.uint8()))})
    single = pa.record_batch({"a": pa.array([4, 5], pa.uint16())})
    pieces = [ids.tolist() for ids in read_feature([bags, bags.slice(2), single], "a")]
    assert pieces == [[1, 2, 3], [3], [4, 5]]


def test_profiles_are_ordered_by_their_number():
    paths = [Path(f"{name}.log") for name in ("b_10", "user_1", "1_0", "7_2")]
    paths += [Path(f"x_{j}.log") for j in range(3, 10)]
    ordered = [path.stem for path in in_order_of_features(paths)]
    assert ordered == ["1_0", "user_1", "7_2", *(f"x_{j}" for j in range(3, 10)), "b_10"]


@pytest.mark.parametrize("names", [["a_0", "b_2"], ["a_0", "b_0"], ["a", "b_1"]])
def test_numbers_of_profiles_have_no_gap(names):
    with pytest.raises(DataError, match=r"one of 0 \.\. 1 each is needed, as in C1_0\.log"):
        in_order_of_features([Path(f"{name}.log") for name in names])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1, 2\n", "not three lines of numbers; a profile holds ids, distances"),
        (REFERENCE + "7\n", "not three lines of numbers"),
        ("\n0\n1.0\n", "not three lines of numbers"),
        ("np.uint64(1), 2\n0\n1.0\n", r"line 1: entry 1 is 'np\.uint64\(1\)'; whole numbers"),
        ("1, -2\n0\n1.0\n", r"line 1: entry 2 is '-2'; whole numbers 0 \.\. 2\*\*64 - 1"),
        ("1, 18446744073709551616\n0\n1.0\n", "line 1: entry 2 is '18446744073709551616'"),
        ("1, 2\n0, 1.5\n0.5, 1.0\n", "line 2: entry 2 is '1.5'; whole numbers"),
        ("777, " * 2_000_000 + "-1\n0\n1.0\n", "line 1: entry 2000001 is '-1'"),
        ("1, 2\n0, 1\n0.5, x\n", "line 3: entry 2 is 'x'; shares above 0, up to 1"),
        ("1, 2\n0, 1\n0.0, 1.0\n", "line 3: entry 1 is '0.0'; shares"),
        ("1, 2\n0, 1\n0.5, nan\n", "line 3: entry 2 is 'nan'; shares"),
        ("1, 2, 1\n0, 1\n0.5, 1.0\n", "line 1: id 1 stands 2 times; ids are distinct"),
        ("1, 2\n1, 2\n0.5, 1.0\n", "line 2: distances must ascend from 0"),
        ("1, 2\n0, 2, 1\n0.5, 0.7, 1.0\n", "line 2: distances must ascend from 0"),
        ("1, 2\n0, 3\n0.5, 1.0\n", "line 2: distance 3 for 2 ids in line 1"),
        ("1, 2\n0, 1\n1.0\n", "line 3: 1 shares for 2 distances in line 2"),
        ("1, 2\n0, 1\n0.5, 0.9\n", "line 3: cumulative shares must ascend to 1"),
        ("1, 2\n0, 1, 2\n0.5, 0.4, 1.0\n", "line 3: cumulative shares must ascend to 1"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path, content, message):
    path = _file(tmp_path, content, "bad.log")
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + message):
        read_profile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1, 2\n3, x7\n", "line 2: entry 2 is 'x7'; whole numbers"),
        ("5\n" * 3_000_000 + "4 -1\n", "line 3000001: entry 2 is '-1'"),
        ("9\n" + "555, " * 2_000_000 + "\n\n1 -1\n", "line 4: entry 2 is '-1'"),
        ("9\n" + "555, " * 2_000_000 + "-1\n", "line 2: entry 2000001 is '-1'"),
        ("1 2 1.0", r"line 1: entry 3 is '1\.0'"),
        ("1 " + "7" * 5_000_000, f"line 1: entry 2 is '{'7' * 40}'"),
    ],
)
def test_what_is_no_id_is_refused(tmp_path, content, message):
    path = _file(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(str(path)) + " " + message):
        _read(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), dtype=np.int64), r"int64 of shape \(2, 2\); one dimension of whole"),
        (np.zeros(2), r"float64 of shape \(2,\); one dimension of whole numbers"),
        (np.array([1, -5]), r"entry 2 is -5; 0 \.\. 2\*\*64 - 1 is allowed"),
    ],
)
def test_an_npy_file_of_something_else_is_refused(tmp_path, array, message):
    np.save(tmp_path / "ids.npy", array)
    with pytest.raises(DataError, match=r"ids\.npy: " + message):
        _read(tmp_path / "ids.npy")


def test_a_damaged_npy_file_is_refused(tmp_path):
    path = _file(tmp_path, b"\x93NUMPY\x01\x00", "ids.npy")
    with pytest.raises(DataError, match=r"ids\.npy: not a \.npy file of numbers: .*; save it anew"):
        _read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file; name a trace of ids"):
        _read(tmp_path / "ids.txt")
    with pytest.raises(DataError, match="no such file; name a profile made by"):
        read_profile(tmp_path / "p.log")


def test_ids_are_written_as_npy_or_text_only():
    check_ids_path(Path("ids.npy"))
    with pytest.raises(ConfigError, match=r"--out ids\.csv: name a file that ends in \.npy or"):
        check_ids_path(Path("ids.csv"))
