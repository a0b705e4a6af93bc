"""Columns of a request -> ids and numbers, compiled: one call for all columns of a kind.

Columns lie one after the other in one array. Texts are as the binary tensor extension writes them,
a u32 length and the bytes each, and no length is trusted. A kernel does not say what is wrong: it
returns False, and the path of `prepare` finds the words.

Shapes: K columns, n rows; a column has n values, or one that all rows share.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts.schema import FIRST_ID, MISSING, OUT_OF_VOCABULARY
from fastdlrm.data.keys import Keys, text_key, write_buckets
from fastdlrm.data.keytable import look_up
from fastdlrm.data.values import SOUND, parse_id

HEX, INT, STRING = 0, 1, 2
"""How a text becomes a key."""
EMPTY_IS_VALUE, TRIMMED = 1, 2
"""Added to STRING: an empty text is a value too; text with white space at an end is not sound."""
VOCABULARY, HASH, REFERENCE, IDENTITY = 0, 1, 2, 3
"""How a key becomes an id."""
ENCODING, FIRST_KEY, NUM_KEYS, FIRST_SLOT, NUM_SLOTS, MODULUS, FEATURE = range(7)
"""Columns of `places`: one of the encodings; the table's part of the keys and of the slots of all
tables; buckets of a hash, rows of an identity, modulus of a reference (0: none); the row of the
ids to write."""
LENGTH_BYTES = 4
SPACE, TAB, CARRIAGE_RETURN = 0x20, 0x09, 0x0D
ZERO, NINE, TEN = np.uint64(ord("0")), np.uint64(9), np.uint64(10)
"""What is below ZERO wraps around, and is above NINE too."""
MAX_MANTISSA = np.uint64(1 << 53)
MAX_MANTISSA_CHARS, MAX_EXPONENT_CHARS = 19, 4
"""What fits 64 bits."""
MAX_POWER = 22
POWERS = np.array([10.0**i for i in range(MAX_POWER + 1)])
"""Each is exact, and so is a mantissa of 53 bits: their product or quotient is rounded once."""

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


@njit(cache=True, nogil=True)
def find_text(data: Bytes, begin: int, count: int) -> int:
    """Where a column's text number `count` from `begin` on starts; -1 where the data ends before.

    Args:
        data: Texts of one column.
        begin: Where one of them starts.
        count: Texts to skip.
    """
    at = begin
    for _ in range(count):
        if at + LENGTH_BYTES > len(data):
            return -1
        at += LENGTH_BYTES + _length(data, at)
    return at if at <= len(data) else -1


@njit(cache=True, nogil=True)
def pack_texts(data: Bytes, offsets: NDArray[np.int32], out: Bytes) -> bool:
    """Texts of one column as Arrow holds them.

    Args:
        data: n texts, and nothing else.
        offsets: To write, shape (n + 1,).
        out: To write, the texts without their lengths: as long as `data` or longer.

    Returns:
        Whether the data held n texts.
    """
    at, size = 0, 0
    offsets[0] = 0
    for i in range(len(offsets) - 1):
        if at + LENGTH_BYTES > len(data):
            return False
        length = _length(data, at)
        at += LENGTH_BYTES
        if length > len(data) - at:
            return False
        for j in range(length):
            out[size + j] = data[at + j]
        at += length
        size += length
        offsets[i + 1] = size
    return at == len(data)


@njit(cache=True, nogil=True)
def write_text_ids(
    data: Bytes,
    starts: Integers,
    counts: Integers,
    kinds: Integers,
    places: Integers,
    vocabulary: tuple[Keys, NDArray[np.uint32]],
    missing: tuple[Bytes, Integers],
    ids: NDArray[np.int32],
) -> bool:
    """Write the ids of columns of text.

    Args:
        data: The columns.
        starts: Column k is data[starts[k]:starts[k + 1]], shape (K + 1,).
        counts: Values of each, n or 1, shape (K,).
        kinds: HEX, INT, or STRING with or without `EMPTY_IS_VALUE` and `TRIMMED`; shape (K,).
        places: Shape (K, 7).
        vocabulary: Keys and slots of all tables.
        missing: Texts that stand for a missing value, but the empty one, and their offsets.
        ids: To write, shape (F, n).

    Returns:
        Whether every value was sound.
    """
    n = ids.shape[1]
    keys = np.empty(n, dtype=np.uint64)
    is_missing = np.empty(n, dtype=np.bool_)
    for k in range(len(counts)):
        at, end, count, kind = starts[k], starts[k + 1], counts[k], kinds[k]
        has_empty = kind > STRING and (kind - STRING) & EMPTY_IS_VALUE != 0
        is_trimmed = kind >= STRING + TRIMMED
        for i in range(count):
            if at + LENGTH_BYTES > end:
                return False
            begin = at + LENGTH_BYTES
            at = begin + _length(data, at)
            if at > end:
                return False
            is_missing[i] = (begin == at and not has_empty) or _is_one_of(data, begin, at, missing)
            if is_missing[i]:
                continue
            if kind >= STRING:
                if is_trimmed and begin < at and _has_white_ends(data, begin, at):
                    return False
                if not _is_utf8(data, begin, at):
                    return False
                keys[i] = text_key(data, begin, at)
            else:
                base = np.uint64(16) if kind == HEX else np.uint64(10)
                keys[i], state = parse_id(data, begin, at, base)
                if state != SOUND:
                    return False
        if at != end or not _write_ids(keys, is_missing, count, places[k], vocabulary, ids):
            return False
    return True


@njit(cache=True, nogil=True)
def write_integer_ids(
    values: Integers,
    starts: Integers,
    places: Integers,
    vocabulary: tuple[Keys, NDArray[np.uint32]],
    ids: NDArray[np.int32],
) -> bool:
    """Write the ids of columns of integers, none missing; arguments as for `write_text_ids`."""
    n = ids.shape[1]
    is_missing = np.zeros(n, dtype=np.bool_)
    keys = np.empty(n, dtype=np.uint64)
    for k in range(len(places)):
        count = starts[k + 1] - starts[k]
        for i in range(count):
            keys[i] = np.uint64(values[starts[k] + i])
        if not _write_ids(keys, is_missing, count, places[k], vocabulary, ids):
            return False
    return True


@njit(cache=True, nogil=True)
def write_bucket_ids(
    numbers: NDArray[np.float64],
    edges: NDArray[np.float64],
    edge_starts: Integers,
    places: Integers,
    vocabulary: tuple[Keys, NDArray[np.uint32]],
    ids: NDArray[np.int32],
) -> bool:
    """Write the ids of numbers of key "quantile"; NaN is missing.

    Args:
        numbers: Shape (K, n).
        edges: Inner bucket edges of all columns.
        edge_starts: Where each column's edges begin, and the end, shape (K + 1,).
        places: Shape (K, 7).
        vocabulary: Keys and slots of all tables.
        ids: To write, shape (F, n).
    """
    n = ids.shape[1]
    is_missing = np.empty(n, dtype=np.bool_)
    keys = np.empty(n, dtype=np.uint64)
    for k in range(len(places)):
        for i in range(n):
            number = numbers[k, i]
            is_missing[i] = np.isnan(number)
            low, high = edge_starts[k], edge_starts[k + 1]
            while low < high:
                middle = (low + high) // 2
                if edges[middle] <= number:
                    low = middle + 1
                else:
                    high = middle
            keys[i] = np.uint64(low - edge_starts[k])
        if not _write_ids(keys, is_missing, n, places[k], vocabulary, ids):
            return False
    return True


@njit(cache=True, nogil=True)
def write_text_numbers(
    data: Bytes,
    starts: Integers,
    counts: Integers,
    missing: tuple[Bytes, Integers],
    rows: Integers,
    numbers: NDArray[np.float64],
    rare: tuple[Integers, NDArray[np.int32], Bytes],
) -> int:
    """Write the numbers of columns of text, NaN where missing.

    What is written otherwise than as -12.5e3, or has more digits than one rounding is exact for, is
    left to the caller.

    Args:
        data: The columns.
        starts: Column k is data[starts[k]:starts[k + 1]], shape (K + 1,).
        counts: Values of each, n or 1, shape (K,).
        missing: Texts that stand for a missing value, but the empty one, and their offsets.
        rows: The row of `numbers` that each column goes to, shape (K,).
        numbers: To write, shape (R, n).
        rare: To write, of each number that is left: the row of `numbers`, the first place in it
            and the one after the last, shape (M, 3); the offsets of its text, shape (M + 1,); the
            texts, as long as `data`; M is at least the sum of counts.

    Returns:
        Numbers that are left; -1 where the data is damaged.
    """
    n, num_rare, size = numbers.shape[1], 0, 0
    where, offsets, texts = rare
    offsets[0] = 0
    for k in range(len(counts)):
        at, end, row = starts[k], starts[k + 1], rows[k]
        for i in range(counts[k]):
            if at + LENGTH_BYTES > end:
                return -1
            begin = at + LENGTH_BYTES
            at = begin + _length(data, at)
            if at > end:
                return -1
            number = np.nan
            if begin != at and not _is_one_of(data, begin, at, missing):
                number, is_exact = _number(data, begin, at)
                if not is_exact:
                    for j in range(begin, at):
                        texts[size] = data[j]
                        size += 1
                    where[num_rare, 0] = row
                    where[num_rare, 1] = i
                    where[num_rare, 2] = i + 1 if counts[k] == n else n
                    num_rare += 1
                    offsets[num_rare] = size
            numbers[row, i] = number
        if at != end:
            return -1
        for i in range(counts[k], n):
            numbers[row, i] = numbers[row, 0]
    return num_rare


@njit(cache=True, nogil=True)
def _length(data: Bytes, at: int) -> np.int64:
    return (
        np.int64(data[at])
        | np.int64(data[at + 1]) << 8
        | np.int64(data[at + 2]) << 16
        | np.int64(data[at + 3]) << 24
    )


@njit(cache=True, nogil=True)
def _is_one_of(data: Bytes, begin: int, end: int, texts: tuple[Bytes, Integers]) -> bool:
    """Whether data[begin:end] is one of some texts."""
    content, offsets = texts
    for t in range(len(offsets) - 1):
        size = offsets[t + 1] - offsets[t]
        if size != end - begin:
            continue
        j = 0
        while j < size and content[offsets[t] + j] == data[begin + j]:
            j += 1
        if j == size:
            return True
    return False


@njit(cache=True, nogil=True)
def _number(data: Bytes, begin: int, end: int) -> tuple[float, bool]:
    """Parse -?digits(.digits)?(e[+-]?digits)?, and whether the result is exactly rounded."""
    is_negative = data[begin] == 45
    first = begin + 1 if is_negative else begin
    last, power = min(end, first + MAX_MANTISSA_CHARS), 0
    mantissa, at = _digits(data, first, last, np.uint64(0))
    is_number = at > first
    if at < end and data[at] == 46:
        first = at + 1
        mantissa, at = _digits(data, first, last, mantissa)
        power = first - at
        is_number = is_number and at > first
    if at < end and (data[at] == 101 or data[at] == 69):
        exponent, at = _exponent(data, at + 1, end)
        power += exponent
    is_exact = mantissa <= MAX_MANTISSA and -MAX_POWER <= power <= MAX_POWER
    if not is_number or at != end or not is_exact:
        return 0.0, False
    number = np.float64(mantissa)
    number = number / POWERS[-power] if power < 0 else number * POWERS[power]
    return -number if is_negative else number, True


@njit(cache=True, nogil=True)
def _digits(data: Bytes, begin: int, end: int, number: np.uint64) -> tuple[np.uint64, int]:
    """Append the digits that data[begin:end] begins with; the number, and where they end."""
    for at in range(begin, end):
        digit = np.uint64(data[at]) - ZERO
        if digit > NINE:
            return number, at
        number = number * TEN + digit
    return number, max(begin, end)


@njit(cache=True, nogil=True)
def _exponent(data: Bytes, at: int, end: int) -> tuple[np.int64, int]:
    """A signed exponent, and where it ends; -1 where it has no digit."""
    is_negative = at < end and data[at] == 45
    if at < end and (data[at] == 45 or data[at] == 43):
        at += 1
    number, stop = _digits(data, at, min(end, at + MAX_EXPONENT_CHARS), np.uint64(0))
    exponent = np.int64(number)
    return -exponent if is_negative else exponent, stop if stop > at else -1


@njit(cache=True, nogil=True)
def _is_utf8(data: Bytes, begin: int, end: int) -> bool:
    """Whether data[begin:end] is UTF-8: no overlong form, no surrogate, nothing beyond U+10FFFF."""
    at = begin
    while at < end:
        lead = data[at]
        at += 1
        if lead < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            low = 0xA0 if lead == 0xE0 else low
            high = 0x9F if lead == 0xED else high
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            low = 0x90 if lead == 0xF0 else low
            high = 0x8F if lead == 0xF4 else high
        else:
            return False
        if more > end - at:
            return False
        for _ in range(more):
            if data[at] < low or data[at] > high:
                return False
            low, high = 0x80, 0xBF
            at += 1
    return True


@njit(cache=True, nogil=True)
def _write_ids(
    keys: Keys,
    is_missing: NDArray[np.bool_],
    count: int,
    place: Integers,
    vocabulary: tuple[Keys, NDArray[np.uint32]],
    ids: NDArray[np.int32],
) -> bool:
    """Write the ids of keys[:count] to a feature's row; False where one has none."""
    n, out, encoding = ids.shape[1], ids[place[FEATURE]], place[ENCODING]
    keys, is_missing = keys[:count], is_missing[:count]
    if encoding == IDENTITY:
        if not _identity_ids(keys, is_missing, place, out):
            return False
    elif encoding == REFERENCE:
        if not _reference_ids(keys, is_missing, place, vocabulary, out):
            return False
    else:
        _keyed_ids(keys, is_missing, place, vocabulary, out)
    for i in range(count, n):
        out[i] = out[0]
    return True


@njit(cache=True, nogil=True)
def _identity_ids(
    keys: Keys, is_missing: NDArray[np.bool_], place: Integers, out: NDArray[np.int32]
) -> bool:
    num_rows = np.uint64(place[MODULUS])
    for i in range(len(keys)):
        if is_missing[i] or keys[i] >= num_rows:
            return False
        out[i] = keys[i]
    return True


@njit(cache=True, nogil=True)
def _reference_ids(
    keys: Keys,
    is_missing: NDArray[np.bool_],
    place: Integers,
    vocabulary: tuple[Keys, NDArray[np.uint32]],
    out: NDArray[np.int32],
) -> bool:
    modulus = np.uint64(place[MODULUS])
    for i in range(len(keys)):
        if is_missing[i]:
            keys[i] = np.uint64(0)
        elif modulus != 0:
            keys[i] %= modulus
    _look_up_in(keys, place, vocabulary, out)
    for i in range(len(keys)):
        if out[i] == OUT_OF_VOCABULARY:
            return False
        out[i] -= FIRST_ID
    return True


@njit(cache=True, nogil=True)
def _keyed_ids(
    keys: Keys,
    is_missing: NDArray[np.bool_],
    place: Integers,
    vocabulary: tuple[Keys, NDArray[np.uint32]],
    out: NDArray[np.int32],
) -> None:
    for i in range(len(keys)):
        if is_missing[i]:
            keys[i] = np.uint64(0)  # any key will do
    if place[ENCODING] == HASH:
        buckets = out[: len(keys)]
        write_buckets(keys, np.uint64(place[MODULUS]), np.uint64(FIRST_ID), buckets)
    else:
        _look_up_in(keys, place, vocabulary, out)
    for i in range(len(keys)):
        if is_missing[i]:
            out[i] = MISSING


@njit(cache=True, nogil=True)
def _look_up_in(
    keys: Keys,
    place: Integers,
    vocabulary: tuple[Keys, NDArray[np.uint32]],
    out: NDArray[np.int32],
) -> None:
    first_key, first_slot = place[FIRST_KEY], place[FIRST_SLOT]
    table_keys = vocabulary[0][first_key : first_key + place[NUM_KEYS]]
    slots = vocabulary[1][first_slot : first_slot + place[NUM_SLOTS]]
    look_up(keys, table_keys, slots, out)


@njit(cache=True, nogil=True)
def _has_white_ends(data: Bytes, begin: int, end: int) -> bool:
    return _is_white(data[begin]) or _is_white(data[end - 1])


@njit(cache=True, nogil=True)
def _is_white(byte: np.uint8) -> bool:
    """What the reader of text files trims."""
    return bool(byte == SPACE or TAB <= byte <= CARRIAGE_RETURN)
