"""Delimited text -> the fields of its rows, compiled.

A row ends at a line break, LF or CRLF, that is not inside quotes. A field is quoted when its first
character, spaces aside, is the quote; inside, a doubled quote stands for one. Elsewhere a quote is
a character like any other. White space around a field's text is left out.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

MORE = 0
"""The text ends before the row does."""
FULL = 1
"""There is no room for another row."""
WRONG_COUNT = 2
"""The row has another number of fields than it should."""
OPEN_QUOTE = 3
"""A quote is opened and not closed before the text ends."""
STRAY_QUOTE = 4
"""A closing quote is followed by neither a delimiter nor a line break."""
_ROW = 5

_LF = np.uint8(10)
_CR = np.uint8(13)
_TAB = np.uint8(9)
_SPACE = np.uint8(32)


class Dialect(NamedTuple):
    """How rows are written, and which fields are kept.

    Attributes:
        delimiter: Bytes between fields.
        quote: Byte that quotes a field; -1 for none.
        slots: By field: the column that takes its text, -1 for none. Its length is the number of
            fields a row must have.
    """

    delimiter: NDArray[np.uint8]
    quote: int
    slots: NDArray[np.int64]


class Columns(NamedTuple):
    """Texts of the rows read so far, column by column.

    Attributes:
        offsets: Text r of column c is data[c, offsets[c, r]:offsets[c, r + 1]]; offsets[c, 0] is 0.
        data: UTF-8 bytes; as wide as the text to split.
        lines: Line on which each row begins.
        spans: Where each row begins and ends in the text.
    """

    offsets: NDArray[np.int32]
    data: NDArray[np.uint8]
    lines: NDArray[np.int64]
    spans: NDArray[np.int64]


@njit(cache=True, nogil=True)
def split_rows(
    block: NDArray[np.uint8],
    position: int,
    row: int,
    line: int,
    is_final: bool,
    dialect: Dialect,
    columns: Columns,
) -> tuple[int, int, int, int, int]:
    """Append rows to `columns` until the text ends, the room ends, or a row is malformed.

    A line without a character is passed over, unless rows have a single field.

    Args:
        block: The text.
        position: Where to begin, the start of a row.
        row: Rows that `columns` holds already.
        line: Line number at `position`.
        is_final: Whether the text ends here, with or without a line break.
        dialect: How rows are written.
        columns: Where to append.

    Returns:
        Why it stopped (MORE, FULL, WRONG_COUNT, OPEN_QUOTE, STRAY_QUOTE); the start of the first
        row not appended; rows that `columns` holds; the line number there; and for WRONG_COUNT the
        number of fields found.
    """
    # A tuple's array, or a row of an array, counts references: none is made in the loop's calls.
    delimiter, quote, slots = dialect.delimiter, dialect.quote, dialect.slots
    offsets, data, lines, spans = columns.offsets, columns.data, columns.lines, columns.spans
    fields = np.empty((len(slots), 3), dtype=np.int64)
    while position < len(block):
        blank = _line_break(block, position)
        if blank > 0 and len(slots) > 1:
            position += blank
            line += 1
            continue
        if row == len(lines):
            return FULL, position, row, line, 0
        status, end, num_fields, num_lines = _find_fields(
            block, position, is_final, delimiter, quote, fields
        )
        if status != _ROW:
            return status, position, row, line, num_fields
        for field in range(num_fields):
            if slots[field] >= 0:
                _append(block, fields[field], quote, offsets[slots[field]], data[slots[field]], row)
        lines[row] = line
        spans[row, 0] = position
        spans[row, 1] = end
        position = end
        line += num_lines
        row += 1
    return MORE, position, row, line, 0


@njit(cache=True, nogil=True)
def _find_fields(
    block: NDArray[np.uint8],
    position: int,
    is_final: bool,
    delimiter: NDArray[np.uint8],
    quote: int,
    fields: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Status, end, number of fields and lines of a row.

    Writes where each field begins and ends and whether it is quoted to `fields`.
    """
    first, is_single = delimiter[0], len(delimiter) == 1
    num_fields, num_lines = 0, 1
    while True:
        status, begin, is_quoted = _ROW, position, False
        if quote >= 0:
            position = _skip_spaces(block, position, delimiter)
            is_quoted = position < len(block) and block[position] == quote
        if is_quoted:
            begin = position + 1
            status, end, position, num_breaks = _quoted_field(block, begin, delimiter, quote)
            num_lines += num_breaks
        else:
            while position < len(block):
                byte = block[position]
                if byte == _LF:
                    break
                if byte == first and (is_single or _is_delimiter(block, position, delimiter)):
                    break
                position += 1
            end = position
        if not is_final and _is_cut(block, position, delimiter):
            return MORE, position, 0, 0
        if status != _ROW:
            return status, position, 0, 0
        if num_fields < len(fields):
            fields[num_fields, 0] = begin
            fields[num_fields, 1] = end
            fields[num_fields, 2] = is_quoted
        num_fields += 1
        if position == len(block) or block[position] == _LF:
            break
        position += len(delimiter)
    status = _ROW if num_fields == len(fields) else WRONG_COUNT
    return status, min(position + 1, len(block)), num_fields, num_lines


@njit(cache=True, nogil=True)
def _quoted_field(
    block: NDArray[np.uint8], position: int, delimiter: NDArray[np.uint8], quote: int
) -> tuple[int, int, int, int]:
    """Status, end, where the delimiter or line break after it is, and line breaks inside."""
    num_breaks = 0
    while position < len(block):
        if block[position] == quote:
            if position + 1 == len(block) or block[position + 1] != quote:
                break
            position += 1
        elif block[position] == _LF:
            num_breaks += 1
        position += 1
    if position == len(block):
        return OPEN_QUOTE, position, position, num_breaks
    end = position
    position = _skip_spaces(block, end + 1, delimiter)
    is_whole = (
        position == len(block)
        or block[position] == _LF
        or _is_delimiter(block, position, delimiter)
    )
    return _ROW if is_whole else STRAY_QUOTE, end, position, num_breaks


@njit(cache=True, nogil=True, inline="always")
def _append(
    block: NDArray[np.uint8],
    field: NDArray[np.int64],
    quote: int,
    offsets: NDArray[np.int32],
    data: NDArray[np.uint8],
    row: int,
) -> None:
    """Append a field's text, trimmed, doubled quotes made one, as a row's text of a column."""
    begin, end, is_quoted = field[0], field[1], field[2]
    while begin < end and _is_white(block[begin]):
        begin += 1
    while begin < end and _is_white(block[end - 1]):
        end -= 1
    length = offsets[row]
    while begin < end:
        data[length] = block[begin]
        length += 1
        begin += 2 if is_quoted and block[begin] == quote else 1
    offsets[row + 1] = length


@njit(cache=True, nogil=True)
def _line_break(block: NDArray[np.uint8], position: int) -> int:
    """Bytes of the line break that stands here; 0 for none."""
    if block[position] == _LF:
        return 1
    if block[position] == _CR and position + 1 < len(block) and block[position + 1] == _LF:
        return 2
    return 0


@njit(cache=True, nogil=True)
def _is_delimiter(block: NDArray[np.uint8], position: int, delimiter: NDArray[np.uint8]) -> bool:
    if position + len(delimiter) > len(block):
        return False
    for i in range(1, len(delimiter)):
        if block[position + i] != delimiter[i]:
            return False
    return bool(block[position] == delimiter[0])


@njit(cache=True, nogil=True, inline="always")
def _is_cut(block: NDArray[np.uint8], position: int, delimiter: NDArray[np.uint8]) -> bool:
    """Whether the text ends before it is known what follows a field."""
    if position == len(block):
        return True
    return block[position] != _LF and len(block) - position < len(delimiter)


@njit(cache=True, nogil=True)
def _skip_spaces(block: NDArray[np.uint8], position: int, delimiter: NDArray[np.uint8]) -> int:
    """Behind the spaces and carriage returns that stand here, delimiters aside."""
    while position < len(block) and block[position] in (_SPACE, _CR):
        if _is_delimiter(block, position, delimiter):
            break
        position += 1
    return position


@njit(cache=True, nogil=True)
def _is_white(byte: np.uint8) -> bool:
    return bool(byte == _SPACE or _TAB <= byte <= _CR)
