"""Raw files -> staged files: one typed Parquet file for each, rows in file order.

A row that cannot be read as the schema says is never altered to fit: it is an error, or left out
and counted. `fastdlrm.data.convert` tells what the staged columns hold.
"""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdlrm.contracts.manifest import InputFile
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.convert import Converter
from fastdlrm.data.int32 import Int32Reader
from fastdlrm.data.parquet import ParquetReader
from fastdlrm.data.staged import LABEL
from fastdlrm.data.text import TextReader, require_all
from fastdlrm.data.write import disk_errors
from fastdlrm.errors import DataError

ROW_GROUP_ROWS = 65_536
"""Rows of a staged row group."""
MAX_REPORTED = 100
"""Bad rows of a file that are kept to be shown; the rest are counted."""

_GLOB = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out.

    Attributes:
        file: Name of the file, without its folder.
        line: Line on which the row begins; in a file that is no text, the row; from 1.
        reason: What is wrong, naming the column.
    """

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A raw file, staged.

    Attributes:
        path: The Parquet file.
        input: The raw file.
        bad_rows: The first MAX_REPORTED rows left out; `input.num_bad_rows` counts all.
    """

    path: Path
    input: InputFile
    bad_rows: list[BadRow]


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and globs name, in the order given.

    Args:
        patterns: Each a path, or a glob ('LOG/*.gz', '**' for any folders). What one glob matches
            comes in natural order, day_2 before day_10. A file that bears the very name of a glob
            is that file.

    Raises:
        DataError: A path does not exist or is not a file, a glob matches nothing, or a file is
            named twice.
    """
    paths: list[Path] = []
    for pattern in patterns:
        if _GLOB.search(pattern) and not Path(pattern).exists():
            matches = sorted(glob.glob(pattern, recursive=True), key=_natural)  # noqa: PTH207
            if not matches:
                raise DataError(f"{pattern!r} matches no file; correct the pattern")
            paths += map(Path, matches)
        else:
            paths.append(Path(pattern))
    seen: set[Path] = set()
    for path in paths:
        require_file(path)
        if path.resolve() in seen:
            raise DataError(f"{path}: named twice; name each file once")
        seen.add(path.resolve())
    return paths


def require_file(path: Path) -> None:
    """Check that a path is a file.

    Raises:
        DataError: It does not exist, is a folder or something else, or has a name that is no text.
    """
    if not _is_text(path.name):
        raise DataError(f"{path.name!r}: the name is not UTF-8, so no artifact can hold it; rename")
    if path.is_dir():
        raise DataError(f"{path}: a folder; name its files, e.g. '{path}/*'")
    if not path.exists():
        raise DataError(f"{path}: no such file; correct the path")
    if not path.is_file():
        raise DataError(f"{path}: not a regular file; copy its content to one")


def open_raw(
    path: Path, source: SourceConfig, columns: Sequence[str], may_lack: str = ""
) -> TextReader | ParquetReader | Int32Reader:
    """A raw file to be read once, batch by batch.

    Args:
        path: The file.
        source: Its layout.
        columns: The columns to keep.
        may_lack: A column that a headerless text file need not have.

    Raises:
        DataError: There is no such file.
        ConfigError: The layout is contradictory, or declares no such column.
    """
    require_file(path)
    if source.format == "parquet":
        return ParquetReader(path, columns)
    if source.format == "int32":
        return Int32Reader(path, source, columns)
    return TextReader(path, source, columns, may_lack)


def stage_file(
    path: Path,
    source: SourceConfig,
    schema: Schema,
    out: Path,
    *,
    remedy: str | None = "correct the row",
    labelled: bool = True,
    time_column: str = "",
    report: Callable[[int], None] = lambda num_bytes: None,
) -> StagedFile:
    """Read a raw file once, check and type every row, write a Parquet file.

    A row is bad that has another number of fields than there are columns, a value that its column's
    kind does not allow, a label neither positive nor negative, weights of another number than its
    ids, or in a text file a NUL byte, bytes that are not UTF-8 or a stray quote. Lines without a
    character are passed over. Memory does not grow with the file; threads may stage several files
    at once.

    Args:
        path: The raw file.
        source: Its layout.
        schema: Its columns.
        out: File to write; it appears complete or not at all.
        remedy: What the message about a bad row says to do; None leaves bad rows out.
        labelled: Whether the label is read. If not, the label's column may be absent; in a
            headerless text file it is if rows have one field less than columns are declared.
        time_column: Raw column that becomes `__time`; empty for none.
        report: Called now and then with the bytes read since the last call; may raise to stop.

    Raises:
        DataError: A bad row, with a remedy; the file is missing, unreadable, damaged, without a
            single good row, or lacks a column; `out` cannot be written.
        ConfigError: The layout is contradictory, or declares no such column.
    """
    converter = Converter(
        path.name, schema, source.missing, labelled=labelled, time_column=time_column
    )
    may_lack = "" if labelled else schema.label.column
    reader = open_raw(path, source, converter.columns, may_lack)
    unit = "line" if source.format == "csv" else "row"
    bad_rows = _BadRows(path.name, unit, remedy)
    num_found, num_bytes = 0, 0
    with _open_staged(out) as staged:
        for raw in reader.batches():
            rows, flaws = converter.convert(raw.columns)
            bad_rows.add(raw.bad + [(int(raw.lines[row]), what) for row, what in flaws.items()])
            staged.append(_without(rows, list(flaws)))
            num_found += len(raw.lines) + len(raw.bad)
            report(reader.num_bytes_read - num_bytes)
            num_bytes = reader.num_bytes_read
        if staged.num_rows == 0:
            raise bad_rows.nothing_left()
        require_all(path.name, "rows", num_found, staged.finish() + bad_rows.num_rows)
    return StagedFile(
        path=out,
        input=InputFile(
            name=path.name,
            sha256=reader.sha256,
            size_bytes=reader.size_bytes,
            num_rows=staged.num_rows,
            num_bad_rows=bad_rows.num_rows,
            num_positives=staged.num_positives if labelled else None,
        ),
        bad_rows=bad_rows.first,
    )


@dataclass(slots=True)
class _BadRows:
    """Counts a file's bad rows and keeps the first; with a remedy to tell, raises at the first."""

    name: str
    unit: str
    remedy: str | None
    num_rows: int = 0
    first: list[BadRow] = field(default_factory=list)

    def add(self, bad: list[tuple[int, str]]) -> None:
        if not bad:
            return
        if self.remedy is not None:
            line, reason = min(bad)
            raise DataError(f"{self.name} {self.unit} {line}: {reason}; {self.remedy}")
        self.num_rows += len(bad)
        room = MAX_REPORTED - len(self.first)
        self.first += [BadRow(self.name, *found) for found in sorted(bad)[:room]]

    def nothing_left(self) -> DataError:
        if not self.first:
            return DataError(f"{self.name}: no rows; leave the file out")
        first = self.first[0]
        return DataError(
            f"{self.name}: all {self.num_rows} rows are bad; the first, {self.unit} {first.line}: "
            f"{first.reason}; check [data.source] and the schema against the file"
        )


class _Staged:
    """Collects rows into row groups of a Parquet file."""

    def __init__(self, path: Path) -> None:
        self.num_rows = 0
        self.num_positives = 0
        self._path = path
        self._file = pa.OSFile(str(path), "wb")
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0

    def append(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows == 0:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, rows.schema, write_statistics=False)
        self.num_rows += rows.num_rows
        if LABEL in rows.schema.names:
            self.num_positives += pc.sum(rows.column(LABEL)).as_py()
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        if self._num_waiting >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(self._waiting)
            whole = self._num_waiting // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            self._writer.write_table(table[:whole], ROW_GROUP_ROWS)
            self._waiting = table[whole:].to_batches()
            self._num_waiting -= whole

    def finish(self) -> int:
        """Write what is left and the footer; returns the rows that the file says it has."""
        if self._writer and self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting), ROW_GROUP_ROWS)
        self.close()
        num_rows: int = pq.read_metadata(self._path).num_rows
        return num_rows

    def close(self) -> None:
        """Close the file, whole or not; a second time does nothing."""
        writer, self._writer = self._writer, None
        try:
            if writer:
                writer.close()
        finally:
            self._file.close()


@contextmanager
def _open_staged(out: Path) -> Iterator[_Staged]:
    """A staged file under a hidden name, renamed to `out` when all went well, else removed."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with disk_errors(out):
        try:
            staged = _Staged(temporary)
            try:
                yield staged
            except BaseException:
                with suppress(OSError):  # the error that ended the writing is the one to show
                    staged.close()
                raise
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without(rows: pa.RecordBatch, bad: list[int]) -> pa.RecordBatch:
    if not bad:
        return rows
    is_good = np.ones(rows.num_rows, dtype=np.bool_)
    is_good[bad] = False
    return rows.filter(pa.array(is_good))


def _natural(path: str) -> list[str | int]:
    """Digits compare as numbers; at even positions always text, at odd ones always numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", path)]
