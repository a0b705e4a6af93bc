"""Planted teacher -> a Criteo-shaped click log whose best AUC is known.

A line holds 40 tab-separated fields: label, I1 .. I13 (integers), C1 .. C26 (8 hexadecimal digits);
a field but the label may be empty.

Invariants: a row is a function of the seed and of the row's number; bytes do not depend on the
number of workers; memory does not depend on the number of rows; `teacher.json` is written last.
"""

import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm import __version__
from fastdlrm.contracts.manifest import FileEntry, entry_of, replacing, write_atomic
from fastdlrm.data import keys
from fastdlrm.data.teacher import (
    CLICK_RATE,
    DENSE_FIELDS,
    GAP,
    GAP_ID,
    NUM_DENSE,
    NUM_GAP_GROUPS,
    NUM_SPARSE,
    SPARSE_FIELDS,
    Floats,
    Ints,
    Teacher,
    dense_value,
    id_of_rank,
    sparse_rank,
)
from fastdlrm.errors import ConfigError, DataError

REPORT = "teacher.json"

_CHUNK_ROWS = 16_384
_NUM_FIELDS = NUM_DENSE + NUM_SPARSE
_MAX_LINE_BYTES = 2 + 12 * NUM_DENSE + 9 * NUM_SPARSE
_ZLIB_LEVEL = 1
_GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
"""Deflate, no name, time 0, unknown system: the same bytes at any time and place."""
_DEFLATE_END = b"\x03\x00"
_NUM_BINS = 1 << 20
_MAX_LOGIT = 16.0


class TeacherReport(msgspec.Struct, frozen=True, kw_only=True):
    """How well the teacher itself does on the rows written, and all that reproduces them."""

    created_by: str
    """Package version."""
    seed: int
    num_rows: int
    num_files: int
    gzip: bool
    shuffle_labels: bool
    click_rate: float
    """Share of clicks among the rows."""
    auc: float | None
    """Of the teacher's scores, the best any model can expect; 0.5 with shuffle_labels. None where
    the rows hold one class only."""
    auc_error: float
    """Most that `auc` differs from the exact value, for it is read off a histogram."""
    log_loss: float
    """Of the teacher's probabilities, in nats a row; of a constant one with shuffle_labels."""
    files: dict[str, FileEntry]
    """By name."""


class _Chunk(NamedTuple):
    """Rows that were made in one go."""

    text: bytes
    deflated: bytes
    """The text as blocks of a deflate stream; empty without gzip."""
    logits: Floats
    labels: NDArray[np.uint8]


def generate(
    out: Path,
    *,
    num_rows: int,
    num_files: int,
    gzip: bool,
    seed: int,
    shuffle_labels: bool = False,
    num_workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> TeacherReport:
    """Write `day_0.gz` .. (or `day_0.tsv` ..) and `teacher.json`.

    Args:
        out: Folder to make; it must not exist or be empty.
        num_rows: Of all files together; each file gets as many, give or take one.
        num_files: 1 or more, at most num_rows.
        gzip: Whether to compress the files.
        seed: Of teacher and rows, 0 .. 2**64 - 1.
        shuffle_labels: Draw labels that the features say nothing of; the features stay the same.
        num_workers: Threads; the bytes do not depend on it.
        progress: Takes the number of rows written since it was last called.

    Returns:
        What `teacher.json` holds.

    Raises:
        ConfigError: A number is out of range.
        DataError: `out` cannot be made or is not empty.
    """
    _check(num_rows, num_files, seed, num_workers)
    _make_folder(out)
    source = _Source(seed, gzip=gzip, shuffle_labels=shuffle_labels)
    quality = _Quality()
    sizes = [num_rows // num_files + (i < num_rows % num_files) for i in range(num_files)]
    files: dict[str, FileEntry] = {}
    with ThreadPoolExecutor(num_workers) as pool:
        chunks = _in_order(pool, source.chunk, _spans(sizes), 2 * num_workers)
        for i, size in enumerate(sizes):
            path = out / f"day_{i}.{'gz' if gzip else 'tsv'}"
            mine = islice(chunks, -(-size // _CHUNK_ROWS))
            _write_file(path, _observed(mine, quality, progress), gzip)
            files[path.name] = entry_of(path, size)
    auc, auc_error = (0.5, 0.0) if shuffle_labels else quality.auc()
    report = TeacherReport(
        created_by=__version__,
        seed=seed,
        num_rows=num_rows,
        num_files=num_files,
        gzip=gzip,
        shuffle_labels=shuffle_labels,
        click_rate=int(quality.counts[1].sum()) / num_rows,
        auc=auc,
        auc_error=auc_error,
        log_loss=quality.loss / num_rows,
        files=files,
    )
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    write_atomic(out / REPORT, text + b"\n")
    return report


def _check(num_rows: int, num_files: int, seed: int, num_workers: int) -> None:
    for name, value in (("num_files", num_files), ("num_workers", num_workers)):
        if value < 1:
            raise ConfigError(f"generate: {name} is {value}; 1 or more is allowed")
    if num_rows < num_files:
        raise ConfigError(
            f"generate: {num_rows} rows for {num_files} files; a file takes 1 or more: ask for "
            "more rows or fewer files"
        )
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"generate: seed is {seed}; 0 .. 2**64 - 1 is allowed")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(
            f"{out}: no such folder can be made: {problem.strerror}; name a folder that does not "
            "exist or is empty"
        ) from problem
    if found := sorted(path.name for path in out.iterdir()):
        raise DataError(
            f"{out}: holds {found[0]!r} and so is not empty; name a folder that does not exist or "
            "is empty"
        )


def _spans(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and past-the-last row of each chunk; no chunk spans two files."""
    start = 0
    for size in sizes:
        for first in range(start, start + size, _CHUNK_ROWS):
            yield first, min(first + _CHUNK_ROWS, start + size)
        start += size


def _in_order(
    pool: ThreadPoolExecutor,
    make: Callable[[int, int], _Chunk],
    spans: Iterator[tuple[int, int]],
    num_ahead: int,
) -> Iterator[_Chunk]:
    """Chunks in order, at most `num_ahead` of them made ahead or being made."""
    pending: deque[Future[_Chunk]] = deque()
    for span in spans:
        pending.append(pool.submit(make, *span))
        if len(pending) == num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _observed(
    chunks: Iterator[_Chunk], quality: "_Quality", progress: Callable[[int], None] | None
) -> Iterator[_Chunk]:
    for chunk in chunks:
        quality.add(chunk)
        yield chunk
        if progress is not None:
            progress(len(chunk.labels))


def _write_file(path: Path, chunks: Iterator[_Chunk], gzip: bool) -> None:
    """Write one file so that it has its name only when it is whole."""
    with replacing(path) as file:
        checksum = size = 0
        file.write(_GZIP_HEADER if gzip else b"")
        for chunk in chunks:
            file.write(chunk.deflated if gzip else chunk.text)
            checksum = zlib.crc32(chunk.text, checksum)
            size += len(chunk.text)
        if gzip:
            file.write(_DEFLATE_END + struct.pack("<II", checksum, size & 0xFFFFFFFF))


class _Source:
    """Makes any rows of the log, in any order."""

    def __init__(self, seed: int, *, gzip: bool, shuffle_labels: bool) -> None:
        self.teacher = Teacher(seed)
        self._gzip = gzip
        self._shuffle_labels = shuffle_labels
        self._values, self._gaps, self._labels = (
            keys.stream(seed, f"generate {what}") for what in ("values", "gaps", "labels")
        )
        self._dense_fields = _records(DENSE_FIELDS)
        self._sparse_fields = _records(SPARSE_FIELDS)

    def chunk(self, start: int, stop: int) -> _Chunk:
        """Rows start .. stop - 1."""
        dense, ids = _draw(
            keys.uniforms(self._values, start * _NUM_FIELDS, stop * _NUM_FIELDS),
            keys.uniforms(self._gaps, start * NUM_GAP_GROUPS, stop * NUM_GAP_GROUPS),
            self._dense_fields,
            self._sparse_fields,
            self.teacher.parameters.id_keys,
        )
        if self._shuffle_labels:
            logits = np.full(stop - start, np.log(CLICK_RATE / (1 - CLICK_RATE)))
        else:
            logits = self.teacher.logits(dense, ids)
        units = keys.uniforms(self._labels, start, stop)
        labels = (units * (1.0 + np.exp(-logits)) < 1.0).astype(np.uint8)
        text = _lines(labels, dense, ids).tobytes()
        return _Chunk(text, _deflate(text) if self._gzip else b"", logits, labels)


class _Quality:
    """AUC and log loss of the teacher over all chunks, in memory that does not grow.

    Attributes:
        counts: Rows by label and bin of the logit, shape (2, _NUM_BINS).
        loss: Sum of the log losses.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, _NUM_BINS), dtype=np.int64)
        self.loss = 0.0

    def add(self, chunk: _Chunk) -> None:
        """Count a chunk's rows."""
        _count(chunk.logits, chunk.labels, self.counts)
        losses = np.logaddexp(0.0, np.where(chunk.labels == 1, -chunk.logits, chunk.logits))
        self.loss += float(losses.sum())

    def auc(self) -> tuple[float | None, float]:
        """AUC and the most it can be wrong: pairs of one bin count half, and may count 0 or 1."""
        negatives, positives = self.counts.astype(np.float64)
        num_pairs = float(negatives.sum() * positives.sum())
        if num_pairs == 0:
            return None, 0.0
        half = 0.5 * float(positives @ negatives) / num_pairs
        return float(positives @ (np.cumsum(negatives) - negatives)) / num_pairs + half, half


def _records(fields: Sequence[NamedTuple]) -> NDArray[np.void]:
    """Fields as an array that compiled code reads by attribute."""
    types = [(name, np.dtype(kind)) for name, kind in type(fields[0]).__annotations__.items()]
    return np.array([tuple(field) for field in fields], dtype=types)


def _deflate(text: bytes) -> bytes:
    """Blocks of a raw deflate stream that end on a byte, so that chunks can be joined."""
    compressor = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)


@njit(cache=True, nogil=True)
def _draw(
    units: Floats,
    gap_units: Floats,
    dense_fields: NDArray[np.void],
    sparse_fields: NDArray[np.void],
    id_keys: Ints,
) -> tuple[Ints, Ints]:
    """Features of B rows from uniform numbers, B * 39 for values and B * NUM_GAP_GROUPS for gaps.

    Returns:
        Dense values, shape (B, NUM_DENSE), and ids, shape (B, NUM_SPARSE).
    """
    num_rows = len(units) // _NUM_FIELDS
    dense = np.empty((num_rows, NUM_DENSE), dtype=np.int64)
    ids = np.empty((num_rows, NUM_SPARSE), dtype=np.int64)
    for row in range(num_rows):
        gaps = gap_units[row * NUM_GAP_GROUPS : (row + 1) * NUM_GAP_GROUPS]
        values = units[row * _NUM_FIELDS : (row + 1) * _NUM_FIELDS]
        for i in range(NUM_DENSE):
            f = dense_fields[i]
            is_gap = gaps[f.gap_group] < f.gap
            dense[row, i] = GAP if is_gap else dense_value(values[i], f.low, f.scale, f.shape)
        for i in range(NUM_SPARSE):
            g = sparse_fields[i]
            if gaps[g.gap_group] < g.gap:
                ids[row, i] = GAP_ID
            else:
                rank = sparse_rank(values[NUM_DENSE + i], g.num_ids, g.tail, g.skew)
                ids[row, i] = id_of_rank(rank, id_keys[i])
    return dense, ids


@njit(cache=True, nogil=True)
def _count(logits: Floats, labels: NDArray[np.uint8], counts: Ints) -> None:
    """Add rows to the bins of [-_MAX_LOGIT, _MAX_LOGIT]; the outer bins take what lies beyond."""
    for row in range(len(logits)):
        place = int((logits[row] / _MAX_LOGIT + 1.0) * (_NUM_BINS / 2))
        counts[labels[row], min(max(place, 0), _NUM_BINS - 1)] += 1


@njit(cache=True, nogil=True)
def _lines(labels: NDArray[np.uint8], dense: Ints, ids: Ints) -> NDArray[np.uint8]:
    """The text of B rows."""
    text = np.empty(len(labels) * _MAX_LINE_BYTES, dtype=np.uint8)
    at = 0
    for row in range(len(labels)):
        text[at] = ord("0") + labels[row]
        at += 1
        for i in range(NUM_DENSE):
            text[at] = ord("\t")
            at += 1
            if dense[row, i] != GAP:
                at = _write_integer(text, at, dense[row, i])
        for i in range(NUM_SPARSE):
            text[at] = ord("\t")
            at += 1
            if ids[row, i] != GAP_ID:
                at = _write_id(text, at, ids[row, i])
        text[at] = ord("\n")
        at += 1
    return text[:at]


@njit(cache=True, nogil=True)
def _write_integer(text: NDArray[np.uint8], at: int, value: int) -> int:
    """Write decimal digits; the place after them."""
    if value < 0:
        text[at] = ord("-")
        at += 1
        value = -value
    end = at + 1
    rest = value // 10
    while rest > 0:
        end += 1
        rest //= 10
    for place in range(end - 1, at - 1, -1):
        text[place] = ord("0") + value % 10
        value //= 10
    return end


@njit(cache=True, nogil=True)
def _write_id(text: NDArray[np.uint8], at: int, identifier: int) -> int:
    """Write 8 hexadecimal digits; the place after them."""
    for place in range(8):
        digit = (identifier >> (28 - 4 * place)) & 15
        text[at + place] = digit + (ord("0") if digit < 10 else ord("a") - 10)
    return at + 8
