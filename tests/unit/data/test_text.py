import csv
import gzip
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdlrm.data import scan, text
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.text import BATCH_ROWS, MAX_ROW_BYTES, RawBatch, TextReader, require_all
from fastdlrm.errors import ConfigError, DataError

WHITE = " \t\n\v\f\r"


def _layout(columns: str = "a b", **settings: object) -> SourceConfig:
    return SourceConfig(format="csv", columns=tuple(columns.split()), **settings)


def _batches(folder: Path, content: bytes, source: SourceConfig, *args: object) -> list[RawBatch]:
    path = folder / "f.csv"
    path.write_bytes(content)
    return list(TextReader(path, source, *args).batches())


def _rows(batches: list[RawBatch]) -> list[tuple[int, ...]]:
    """(line, field, ...) of each row."""
    return [
        (int(line), *row.values())
        for batch in batches
        for line, row in zip(batch.lines, batch.columns.to_pylist(), strict=True)
    ]


def _read(folder: Path, content: bytes, source: SourceConfig, *args: object) -> list[tuple]:
    batches = _batches(folder, content, source, *args)
    assert [batch.bad for batch in batches if batch.bad] == []
    return _rows(batches)


def _bad(folder: Path, content: bytes, source: SourceConfig) -> list[tuple[int, str]]:
    return [bad for batch in _batches(folder, content, source) for bad in batch.bad]


@pytest.fixture(params=[1, 7, 64, 4096, None])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Sizes at which files are cut into pieces; None: as they come."""
    if request.param:
        monkeypatch.setattr(scan, "READ_BYTES", request.param)
        monkeypatch.setattr(text, "CHUNK_BYTES", request.param)
    return request.param


def _random_rows(seed: int, num_rows: int) -> list[list[str]]:
    draw = random.Random(seed)
    alphabet = ["a", "b", "7", '"', ",", " ", "\n", "é", "漢", "\r\n", "|", "\t"]
    return [
        ["x" + "".join(draw.choices(alphabet, k=draw.randrange(6))) + "z" for _ in range(4)]
        for _ in range(num_rows)
    ]


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_pythons_csv_writes_is_read(
    tmp_path: Path, piece_bytes: int | None, line_break: str, quoting: int
) -> None:
    rows = _random_rows(seed=3, num_rows=300)
    rows[5] = ["", "", '"', "x"]
    file = io.StringIO()
    csv.writer(file, quoting=quoting, lineterminator=line_break).writerows(rows)
    reader = csv.reader(io.StringIO(file.getvalue(), newline=""))
    lines = [1, *(reader.line_num + 1 for _ in reader)][:-1]
    expected = [
        (line, *(f.strip(WHITE) for f in row)) for line, row in zip(lines, rows, strict=True)
    ]
    assert _read(tmp_path, file.getvalue().encode(), _layout("a b c d")) == expected


@pytest.mark.parametrize("delimiter", ["\t", "|", "||", "~|~ ", "§", " "])
def test_delimiters_of_one_to_four_bytes(
    tmp_path: Path, piece_bytes: int | None, delimiter: str
) -> None:
    content = f'1{delimiter}{delimiter}"x{delimiter}y"\n|{delimiter}b{delimiter}~\n'.encode()
    if delimiter.startswith("|"):
        content = content.replace(b"\n|", b"\n:")
    first = ":" if delimiter.startswith("|") else "|"
    source = _layout("a b c", delimiter=delimiter)
    inside = f"x{delimiter}y"
    assert _read(tmp_path, content, source) == [(1, "1", "", inside), (2, first, "b", "~")]


def test_white_space_around_fields_is_left_out(tmp_path: Path) -> None:
    content = b' 1 ,\t b c\t\n " 2, " ,"x" \r\n'
    assert _read(tmp_path, content, _layout()) == [(1, "1", "b c"), (2, "2,", "x")]


def test_without_quote_a_quote_is_a_character(tmp_path: Path) -> None:
    assert _read(tmp_path, b'"a,b"\n', _layout(quote="")) == [(1, '"a', 'b"')]


def test_a_quote_inside_a_field_is_a_character(tmp_path: Path) -> None:
    assert _read(tmp_path, b'5" disc,a""b\n', _layout()) == [(1, '5" disc', 'a""b')]


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    assert _read(tmp_path, b"\n1,2\n\r\n\n3,4\n\n", _layout()) == [(2, "1", "2"), (5, "3", "4")]


def test_in_a_file_of_one_column_a_blank_line_is_a_row(tmp_path: Path) -> None:
    assert _read(tmp_path, b"1\n\n3", _layout("a")) == [(1, "1"), (2, ""), (3, "3")]


def test_byte_order_mark(tmp_path: Path) -> None:
    header = SourceConfig(format="csv", header=True)
    assert _read(tmp_path, b"\xef\xbb\xbfa,b\n1,2\n", header, ["a"]) == [(2, "1")]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_the_last_line_break_may_be_absent(tmp_path: Path, ending: bytes) -> None:
    assert _read(tmp_path, b"1,2\n3,4" + ending, _layout()) == [(1, "1", "2"), (2, "3", "4")]


def test_columns_are_kept_in_the_order_asked(tmp_path: Path) -> None:
    assert _read(tmp_path, b"1,2,3\n", _layout("a b c"), ["c", "a"]) == [(1, "3", "1")]


def test_a_header_names_the_columns(tmp_path: Path) -> None:
    header = SourceConfig(format="csv", header=True)
    assert _read(tmp_path, b'"x, y" ,b\r\n1,2\n', header, ["b", "x, y"]) == [(2, "2", "1")]


def test_all_columns_of_a_header(tmp_path: Path) -> None:
    (batch,) = _batches(tmp_path, b"x,b\n1,2\n", SourceConfig(format="csv", header=True))
    assert batch.columns.to_pylist() == [{"x": "1", "b": "2"}]


def test_a_headerless_file_may_lack_the_label(tmp_path: Path) -> None:
    source = _layout("label a b")
    assert _read(tmp_path, b"1,2\n", source, ["a", "b"], "label") == [(1, "1", "2")]
    assert _read(tmp_path, b"0,1,2\n", source, ["a", "b"], "label") == [(1, "1", "2")]


def test_more_rows_than_a_batch(tmp_path: Path) -> None:
    num_rows = BATCH_ROWS + 5
    content = "".join(f"{i},x\n" for i in range(num_rows)).encode()
    batches = _batches(tmp_path, gzip.compress(content), _layout())
    assert [len(batch.lines) for batch in batches] == [BATCH_ROWS, 5]
    assert _rows(batches) == [(i + 1, str(i), "x") for i in range(num_rows)]


def test_a_row_longer_than_a_piece(tmp_path: Path) -> None:
    long = "x" * 5_000_000
    content = f"1,2\n{long},b\n3,4\n".encode()
    assert _read(tmp_path, content, _layout()) == [(1, "1", "2"), (2, long, "b"), (3, "3", "4")]


def test_malformed_rows_cost_no_other_row(tmp_path: Path, piece_bytes: int | None) -> None:
    content = b'1,2\n3\n5,6,7\n"8"x,9\n10,"open\n12,13\n\0,1\n\xff,1\n14,15\n'
    check = "check data.source.delimiter and data.source.quote"
    assert _rows(_batches(tmp_path, content, _layout())) == [
        (1, "1", "2"),
        (6, "12", "13"),
        (9, "14", "15"),
    ]
    assert _bad(tmp_path, content, _layout()) == [
        (2, f"1 fields, 2 are expected; {check}"),
        (3, f"3 fields, 2 are expected; {check}"),
        (4, f"text follows a closing quote; {check}"),
        (5, f"a quote is opened and never closed; {check}"),
        (7, "a NUL byte"),
        (8, "a byte that is not UTF-8, 0xff"),
    ]


def test_an_open_quote_is_given_up_at_the_longest_row(tmp_path: Path) -> None:
    num_lines = MAX_ROW_BYTES // 100 * 2
    content = b'1,"open\n' + (b"x" * 97 + b",1\n") * num_lines
    batches = _batches(tmp_path, content, _layout())
    assert sum(len(batch.lines) for batch in batches) == num_lines
    assert [bad[0] for batch in batches for bad in batch.bad] == [1]


def test_a_line_too_long(tmp_path: Path) -> None:
    content = b"1,2\n" + b"x" * (MAX_ROW_BYTES + 3_000_000)
    with pytest.raises(DataError, match=r"f\.csv line 2: longer than 8 MiB; is it a text file\?"):
        _batches(tmp_path, content, _layout())


def test_a_header_without_a_column(tmp_path: Path) -> None:
    source = SourceConfig(format="csv", header=True)
    with pytest.raises(
        DataError,
        match=r"f\.csv: the header lacks column 'price'; it has 'prices'; correct the name",
    ):
        _batches(tmp_path, b"prices,b\n1,2\n", source, ["price"])


def test_a_header_with_a_column_twice(tmp_path: Path) -> None:
    source = SourceConfig(format="csv", header=True)
    with pytest.raises(DataError, match=r"the header has column 'a' more than once; rename all"):
        _batches(tmp_path, b"a,b,a\n1,2,3\n", source, ["a"])


def test_a_header_unlike_the_declared_columns(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 1: the header names 3 columns, .* data\.source\.columns 2, "
    ):
        _batches(tmp_path, b"a,b,c\n1,2,3\n", _layout("a b", header=True))


def test_a_header_that_is_none(tmp_path: Path) -> None:
    source = SourceConfig(format="csv", header=True)
    with pytest.raises(DataError, match=r"line 1: not a header, it holds a NUL byte; check"):
        _batches(tmp_path, b"a,\0\n1,2\n", source)
    with pytest.raises(DataError, match=r"line 1: not a header, it holds a stray quote; check"):
        _batches(tmp_path, b'a,"b\n1,2\n', source)


def test_columns_that_are_not_declared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source\.columns lacks column 'z'; it has 'a',"):
        _batches(tmp_path, b"1,2\n", _layout(), ["z"])


@pytest.mark.parametrize("delimiter", ["", "\n", "12345"])
def test_delimiters_no_file_can_have(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.source\.delimiter is .*; 1 to 4 bytes without"):
        _batches(tmp_path, b"1,2\n", _layout(delimiter=delimiter))


@pytest.mark.parametrize("quote", ["''", ",", "«", "\n"])
def test_quotes_no_file_can_have(tmp_path: Path, quote: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.source\.quote is .*; one ASCII character"):
        _batches(tmp_path, b"1,2\n", _layout(quote=quote))


def test_neither_header_nor_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source\.columns is empty; name the columns"):
        _batches(tmp_path, b"1,2\n", _layout(""))


def test_lost_rows_are_noticed() -> None:
    require_all("f.csv", "lines", 3, 3)
    with pytest.raises(DataError, match=r"f\.csv: 3 lines found, 2 accounted for; the reader lost"):
        require_all("f.csv", "lines", 3, 2)


@pytest.mark.parametrize("delimiter", [",", "||", " "])
def test_where_a_file_is_cut_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delimiter: str
) -> None:
    """Of garbage too: rows, bad rows and their lines are the same for any size of the pieces."""
    alphabet = [*b'a"\n\r \xc3\xa9\0', *delimiter.encode() * 3, *b"a\n"]
    source = _layout("a b", delimiter=delimiter)
    for seed in range(20):
        content = bytes(random.Random(seed).choices(alphabet, k=80))
        found = []
        for size in (1, 2, 3, 5, 13, 1000):
            monkeypatch.setattr(scan, "READ_BYTES", size)
            monkeypatch.setattr(text, "CHUNK_BYTES", size)
            batches = _batches(tmp_path, content, source)
            found.append((_rows(batches), sorted(bad for b in batches for bad in b.bad)))
        assert all(one == found[-1] for one in found), content
