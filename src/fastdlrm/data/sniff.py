"""The layout of a raw file, found by looking at its first rows.

Rules: the delimiter is the candidate that cuts nearly all of the first lines into the same number
of fields, the most fields winning; the first line is a header if each of its fields is there, is
no number, differs from the others and does not recur in its own column.
"""

import re
from collections import Counter
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from fastdlrm.data.config import SourceConfig
from fastdlrm.data.scan import Scan
from fastdlrm.data.text import TextReader
from fastdlrm.data.values import numbers
from fastdlrm.errors import DataError

DELIMITERS = ("\t", ",", ";", "||", "|", "::", "\x01", " ")
"""Candidates; of equally good ones the first is taken."""
MISSING = ("?", "NA", "N/A", "NULL", "null", "NaN", "nan", "\\N")
"""Texts that stand for a missing value wherever they are seen."""
LOOKED_AT_LINES = 1000

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_AGREEING_SHARE = 0.9


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def text_layout(path: Path) -> SourceConfig:
    """The layout of a text file; columns of a headerless one are named column_1, column_2, ...

    Raises:
        DataError: The file cannot be read, is empty, or its lines share no number of fields.
    """
    lines = _first_lines(path)
    delimiter, num_fields = _delimiter(path, lines)
    quoted_field = re.compile(rf'(^|{re.escape(delimiter)}) *"')
    is_quoted = delimiter != "\t" or any(quoted_field.search(line) for line in lines)
    bare = SourceConfig(
        format="csv",
        delimiter=delimiter,
        quote='"' if is_quoted else "",
        columns=tuple(f"column_{i + 1}" for i in range(num_fields)),
    )
    first = next(TextReader(path, bare).batches()).columns
    if _is_header(first):
        return msgspec.structs.replace(bare, header=True, columns=())
    return bare


def missing_texts(columns: pa.RecordBatch) -> tuple[str, ...]:
    """The empty text, and those of MISSING that stand in a column of text."""
    known = pa.array(MISSING)
    seen: set[str] = set()
    for column in columns.columns:
        if pa.types.is_string(column.type):
            seen.update(pc.unique(column.filter(pc.is_in(column, known))).to_pylist())
    return ("", *(text for text in MISSING if text in seen))


def _first_lines(path: Path) -> list[str]:
    head = b""
    for chunk in Scan(path).chunks():
        head += chunk
        if head.count(b"\n") > LOOKED_AT_LINES:
            break
    lines = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").split("\n")
    lines = [line for line in lines[:LOOKED_AT_LINES] if line.strip("\r")]
    if not lines:
        raise DataError(f"{path.name}: no rows; name a file that has some")
    return lines


def _delimiter(path: Path, lines: list[str]) -> tuple[str, int]:
    """The delimiter, and the number of fields it makes."""
    # A quote inside a field must not swallow lines, so quoted line breaks are the second guess.
    found = _field_counts([_QUOTED.sub("", line) for line in lines]) or _field_counts(
        _QUOTED.sub("", "\n".join(lines)).split("\n")
    )
    if not found:
        raise DataError(
            f"{path.name}: none of {', '.join(map(repr, DELIMITERS))} cuts its lines into equally "
            "many fields; is it a table? If so write [data.source] by hand"
        )
    if found.get("|", 0) - 1 == 2 * (found.get("||", 0) - 1):
        del found["|"]  # it is half of "||" throughout
    best = max(found, key=lambda delimiter: found[delimiter])
    return best, found[best]


def _field_counts(lines: list[str]) -> dict[str, int]:
    """By delimiter that cuts nearly all lines into equally many fields, their number."""
    found: dict[str, int] = {}
    for delimiter in DELIMITERS:
        counts = Counter(line.count(delimiter) + 1 for line in lines)
        num_fields, num_lines = counts.most_common(1)[0]
        if num_fields > 1 and num_lines >= _AGREEING_SHARE * len(lines):
            found[delimiter] = num_fields
    return found


def _is_header(columns: pa.RecordBatch) -> bool:
    if columns.num_rows == 0:
        return False
    names = [column[0].as_py() for column in columns.columns]
    if len(set(names)) < len(names) or not all(names):
        return False
    if len(numbers(pa.array(names))[1]) < len(names):
        return False
    rest = columns[1:]
    return not any(
        pc.any(pc.equal(column, name)).as_py()
        for column, name in zip(rest.columns, names, strict=True)
    )
