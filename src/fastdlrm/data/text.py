"""Delimited text files -> batches of texts, column by column, with the line each row begins on.

A byte order mark at the start is passed over, and so are lines without a character. Every line is
accounted for: it is the header, blank, part of a row, or malformed.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.data.config import SourceConfig
from fastdlrm.data.fields import (
    FULL,
    MORE,
    STRAY_QUOTE,
    WRONG_COUNT,
    Columns,
    Dialect,
    split_rows,
)
from fastdlrm.data.scan import CHUNK_BYTES, Scan
from fastdlrm.errors import ConfigError, DataError, FastDLRMError

BATCH_ROWS = 32_768
"""Most rows of a batch."""
MAX_ROW_BYTES = 8 << 20
"""Longest row."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHECK_DIALECT = "check data.source.delimiter and data.source.quote"


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Consecutive rows of a raw file.

    Attributes:
        lines: Line of each row, in a file that is no text its number, from 1.
        columns: Raw columns by name.
        bad: Line and reason of the malformed rows among them, which are not in `columns`.
    """

    lines: NDArray[np.int64]
    columns: pa.RecordBatch
    bad: list[tuple[int, str]]


class TextReader:
    """Reads one text file once.

    Args:
        path: The file, plain or gzipped.
        source: Its layout.
        columns: The columns to keep; None for all.
        may_lack: A column that the file need not have: a headerless file of one column less than
            declared is taken to lack this one.

    Raises:
        ConfigError: The layout is contradictory, or declares no such column.
    """

    def __init__(
        self,
        path: Path,
        source: SourceConfig,
        columns: Sequence[str] | None = None,
        may_lack: str = "",
    ) -> None:
        check_layout(source)
        if columns is not None and not source.header:
            require_columns("data.source.columns", columns, source.columns, ConfigError)
        self._scan = Scan(path)
        self.columns: list[str] = [] if columns is None else list(columns)
        """The columns kept; known once reading has begun."""
        self._name = path.name
        self._source = source
        self._keeps_all = columns is None
        self._may_lack = may_lack
        self._dialect = _dialect(source, ())
        self._buffers = _buffers(0, 0)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, those read so far."""
        return self._scan.size_bytes

    @property
    def num_bytes_read(self) -> int:
        """Bytes on disk read so far."""
        return self._scan.size_bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal checksum of the bytes read so far."""
        return self._scan.sha256

    def batches(self) -> Iterator[RawBatch]:
        """All rows in file order.

        Raises:
            DataError: The file cannot be read, is damaged, lacks a column, or has a line that is
                too long.
        """
        text, position, line = b"", 0, 1
        num_lines, has_begun = 0, False
        for block, is_final in _blocks(self._scan):
            num_lines += block.count(b"\n") + (is_final and not block.endswith(b"\n"))
            text, position = text[position:] + block, 0
            if not has_begun:
                position, line = self._begin(text, is_final)
                has_begun = True
            has_more = True
            while has_more:
                has_more, batch, position, line = self._batch(text, position, line, is_final)
                if len(batch.lines) or batch.bad:
                    yield batch
        require_all(self._name, "lines", num_lines, line - 1)

    def _begin(self, text: bytes, is_final: bool) -> tuple[int, int]:
        """Learn the columns from the first row; returns where the rows begin, and on which line."""
        position, line = 0, 1
        names = list(self._source.columns)
        if self._source.header:
            names, position, line = self._header(text, is_final)
        elif self._may_lack and self._count_fields(text, is_final) == len(names) - 1:
            names = [name for name in names if name != self._may_lack]
        if self._keeps_all:
            self.columns = names
        require_columns(f"{self._name}: the header", self.columns, names, DataError)
        slots = [self.columns.index(name) if name in self.columns else -1 for name in names]
        self._dialect = _dialect(self._source, slots)
        return position, line

    def _header(self, text: bytes, is_final: bool) -> tuple[list[str], int, int]:
        """Names, the position after them, and the line there."""
        num_fields = self._count_fields(text, is_final)
        dialect = _dialect(self._source, range(num_fields))
        buffers = _buffers(num_fields, len(text), num_rows=1)
        block = np.frombuffer(text, dtype=np.uint8)
        _, end, num_rows, line, _ = split_rows(block, 0, 0, 1, is_final, dialect, buffers)
        if flaw := _flaw(text[:end]) if num_rows else "a stray quote":
            raise DataError(
                f"{self._name} line 1: not a header, it holds {flaw}; {_CHECK_DIALECT}, "
                "or data.source.header"
            )
        names = [_texts(buffers, column, 1)[0].as_py() for column in range(num_fields)]
        if self._source.columns and list(self._source.columns) != names:
            raise DataError(
                f"{self._name} line 1: the header names {len(names)} columns, {names}; "
                f"data.source.columns {len(self._source.columns)}, {list(self._source.columns)}; "
                "make them equal; a header needs no data.source.columns"
            )
        return names, end, line

    def _count_fields(self, text: bytes, is_final: bool) -> int:
        """Fields of the first row; 0 where a stray quote hides it."""
        block = np.frombuffer(text, dtype=np.uint8)
        nothing = _dialect(self._source, ())
        *_, num_fields = split_rows(block, 0, 0, 1, is_final, nothing, _buffers(0, 0, num_rows=1))
        return num_fields

    def _batch(
        self, text: bytes, position: int, line: int, is_final: bool
    ) -> tuple[bool, RawBatch, int, int]:
        """Whether `text` holds more rows, the next ones, and position and line after them."""
        if self._buffers.data.shape[1] < len(text):
            self._buffers = _buffers(len(self.columns), max(len(text), 2 * CHUNK_BYTES))
        block = np.frombuffer(text, dtype=np.uint8)
        row, bad = 0, []
        while True:
            status, position, row, line, num_fields = split_rows(
                block, position, row, line, is_final, self._dialect, self._buffers
            )
            is_too_long = len(text) - position > MAX_ROW_BYTES
            if status == FULL or (status == MORE and not is_too_long):
                break
            # Only the row's first line is given up: what follows may be sound.
            line_end = text.find(b"\n", position) + 1 or (len(text) if is_final else 0)
            if not line_end and not is_too_long:
                break
            if not line_end:
                raise DataError(
                    f"{self._name} line {line}: longer than {MAX_ROW_BYTES >> 20} MiB; is it a "
                    f"text file? {_CHECK_DIALECT}"
                )
            bad.append((line, self._reason(status, num_fields)))
            position = line_end
            line += 1
        return status == FULL, self._collect(text, row, bad), position, line

    def _collect(self, text: bytes, num_rows: int, bad: list[tuple[int, str]]) -> RawBatch:
        arrays = [_texts(self._buffers, column, num_rows) for column in range(len(self.columns))]
        columns = pa.RecordBatch.from_arrays(arrays, self.columns)
        lines = self._buffers.lines[:num_rows].copy()
        spans = self._buffers.spans[:num_rows]
        if num_rows == 0 or not _flaw(text[spans[0, 0] : spans[-1, 1]]):
            return RawBatch(lines, columns, bad)
        flaws = [_flaw(text[begin:end]) for begin, end in spans]
        bad += [(int(n), flaw) for n, flaw in zip(lines, flaws, strict=True) if flaw]
        sound = np.array([not flaw for flaw in flaws])
        return RawBatch(lines[sound], columns.filter(pa.array(sound)), sorted(bad))

    def _reason(self, status: int, num_fields: int) -> str:
        if status == WRONG_COUNT:
            return f"{num_fields} fields, {len(self._dialect.slots)} are expected; {_CHECK_DIALECT}"
        if status == STRAY_QUOTE:
            return f"text follows a closing quote; {_CHECK_DIALECT}"
        return f"a quote is opened and never closed; {_CHECK_DIALECT}"


def check_layout(source: SourceConfig) -> None:
    """Refuse a layout that no file can have.

    Raises:
        ConfigError: Of the delimiter, the quote or the columns.
    """
    delimiter, quote = source.delimiter.encode(), source.quote.encode()
    if not 1 <= len(delimiter) <= 4 or set(delimiter) & set(b"\r\n"):
        raise ConfigError(
            f"data.source.delimiter is {source.delimiter!r}; 1 to 4 bytes without a line break"
        )
    if len(quote) > 1 or quote in (b"\r", b"\n", b" ") or (quote and quote in delimiter):
        raise ConfigError(
            f"data.source.quote is {source.quote!r}; one ASCII character that is not in the "
            "delimiter, or empty"
        )
    if not source.header and not source.columns:
        raise ConfigError(
            "data.source.columns is empty; name the columns in order, or set header = true"
        )


def require_columns(
    where: str, wanted: Sequence[str], found: Sequence[str], error: type[FastDLRMError]
) -> None:
    """Check that each wanted column is there, once.

    Args:
        where: What should have it, for the message.
        wanted: Names.
        found: Names.
        error: What to raise.

    Raises:
        FastDLRMError: As `error`: a column is missing, or stands there twice.
    """
    for name in wanted:
        if name not in found:
            lower = [other.lower() for other in found]
            near = get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
            others = [other for other in found if other.lower() in near] or found
            shown = ", ".join(repr(other) for other in others[:20])
            raise error(f"{where} lacks column {name!r}; it has {shown}; correct the name")
        if list(found).count(name) > 1:
            raise error(f"{where} has column {name!r} more than once; rename all but one")


def require_all(name: str, what: str, found: int, accounted: int) -> None:
    """Check that nothing was lost on the way.

    Raises:
        DataError: The numbers differ.
    """
    if found != accounted:
        raise DataError(
            f"{name}: {found} {what} found, {accounted} accounted for; the reader lost some: "
            "report this file's layout as a defect"
        )


def _blocks(scan: Scan) -> Iterator[tuple[bytes, bool]]:
    """The text in pieces of at least CHUNK_BYTES, and whether each is the last."""
    chunks = scan.chunks()
    pieces = [next(chunks, b"").removeprefix(_BYTE_ORDER_MARK)]
    block = b""
    for chunk in chunks:
        if block:
            yield block, False
            block = b""
        pieces.append(chunk)
        if sum(map(len, pieces)) >= CHUNK_BYTES:
            block, pieces = b"".join(pieces), []
    if last := block + b"".join(pieces):
        yield last, True


def _dialect(source: SourceConfig, slots: Sequence[int]) -> Dialect:
    delimiter = np.frombuffer(source.delimiter.encode(), dtype=np.uint8)
    quote = ord(source.quote) if source.quote else -1
    return Dialect(delimiter, quote, np.array(slots, dtype=np.int64))


def _buffers(num_columns: int, num_bytes: int, num_rows: int = BATCH_ROWS) -> Columns:
    """Room for a batch; memory for texts is taken page by page, as it is filled."""
    # Any column may hold nearly all of the text. Huge pages, which numpy asks for, would take the
    # room of them all at once.
    pages = mmap.mmap(-1, max(1, num_columns * num_bytes))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    data = np.frombuffer(pages, dtype=np.uint8)[: num_columns * num_bytes]
    return Columns(
        offsets=np.zeros((num_columns, num_rows + 1), dtype=np.int32),
        data=data.reshape(num_columns, num_bytes),
        lines=np.empty(num_rows, dtype=np.int64),
        spans=np.empty((num_rows, 2), dtype=np.int64),
    )


def _texts(buffers: Columns, column: int, num_rows: int) -> pa.StringArray:
    offsets = buffers.offsets[column, : num_rows + 1].copy()
    data = buffers.data[column, : offsets[-1]].tobytes()
    return pa.StringArray.from_buffers(num_rows, pa.py_buffer(offsets), pa.py_buffer(data))


def _flaw(text: bytes) -> str:
    """What makes bytes no text; empty for sound ones."""
    if b"\0" in text:
        return "a NUL byte"
    if text.isascii():
        return ""
    try:
        text.decode()
    except UnicodeDecodeError as problem:
        return f"a byte that is not UTF-8, 0x{text[problem.start]:02x}"
    return ""
