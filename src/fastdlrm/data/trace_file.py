"""Files of traces: ids as text or .npy, and profiles as the three lines of text of the reference.

A profile's lines: distinct ids in the order of their first use; the distances that occur, ascending
from 0; the share of accesses with at most each distance. Numbers are separated by a comma and a
space. Both kinds of file are read and written piece by piece.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

from fastdlrm.contracts.manifest import replacing
from fastdlrm.data.trace import Ids, Profile
from fastdlrm.errors import ConfigError, DataError

IDS_AT_ONCE = 1 << 20
_BYTES_AT_ONCE = 1 << 22
_SHARE_ERROR = 1e-6
"""Most that the last cumulative share may differ from 1, for it is rounded in some files."""


def read_ids(path: Path) -> Iterator[Ids]:
    """The ids of a trace, some at a time.

    Args:
        path: A .npy file of one dimension of whole numbers; else text, whole numbers from 0 to
            2**64 - 1 separated by commas, spaces or line ends.

    Raises:
        DataError: The file cannot be read or holds something else; names file, line and entry.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a trace of ids, .npy or text")
    if path.suffix == ".npy":
        yield from _read_npy(path)
    else:
        yield from _read_text(path)


def read_feature(rows: Iterable[pa.RecordBatch], feature: str) -> Iterator[Ids]:
    """The ids of a sparse feature of a dataset, bag after bag."""
    for batch in rows:
        column = batch.column(feature)
        ids = column.flatten() if pa.types.is_list(column.type) else column
        yield ids.to_numpy().astype(np.uint64)


def in_order_of_features(paths: Sequence[Path]) -> list[Path]:
    """Profiles named NAME_j.log by their number j.

    Raises:
        DataError: The numbers are not 0, 1, 2, ..., each once.
    """
    numbers = [re.fullmatch(r"(?:.*_)?([0-9]+)", path.stem) for path in paths]
    by_number = {int(n[1]): path for n, path in zip(numbers, paths, strict=True) if n}
    if sorted(by_number) != list(range(len(paths))):
        raise DataError(
            f"profiles {', '.join(path.name for path in paths)}: their names end in the numbers "
            f"{sorted(by_number)}; one of 0 .. {len(paths) - 1} each is needed, as in C1_0.log"
        )
    return [by_number[j] for j in range(len(paths))]


def check_ids_path(path: Path) -> None:
    """Check that ids can be written there, before they are drawn.

    Raises:
        ConfigError: The name ends in neither .npy nor .txt.
    """
    if path.suffix not in (".npy", ".txt"):
        raise ConfigError(f"--out {path}: name a file that ends in .npy or .txt")


def write_ids(path: Path, pieces: Iterable[Ids], num_ids: int) -> None:
    """Write ids so that the file appears complete or not at all.

    Args:
        path: .npy gives uint64; .txt one line of text, as the reference reads it.
        pieces: The ids.
        num_ids: Of all pieces together.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        if path.suffix == ".npy":
            header = {"descr": "<u8", "fortran_order": False, "shape": (num_ids,)}
            npy.write_array_header_1_0(file, header)
            for piece in pieces:
                file.write(piece.astype("<u8").tobytes())
        else:
            _write_line(file, pieces)


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        DataError: It is not one; names file, line, entry and what is wrong.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a profile made by `fastdlrm trace profile`")
    with path.open("rb") as file:
        lines = [_line(file) for _ in range(3)]
        if any(not line.strip() for line in lines) or file.read().strip():
            raise DataError(
                f"{path}: not three lines of numbers; a profile holds ids, distances and "
                "cumulative shares"
            )
    ids = _in_pieces(_whole_numbers, lines[0], path, 1)
    distances = _in_pieces(_whole_numbers, lines[1], path, 2).astype(np.int64)
    cumulative = _in_pieces(_shares, lines[2], path, 3)
    _check(path, ids, distances, cumulative)
    return Profile(ids=ids, distances=distances, cumulative=cumulative / cumulative[-1])


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile so that the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for numbers in (profile.ids, profile.distances, profile.cumulative):
            _write_line(
                file,
                (numbers[i : i + IDS_AT_ONCE] for i in range(0, len(numbers), IDS_AT_ONCE)),
            )


def _read_npy(path: Path) -> Iterator[Ids]:
    try:
        trace = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as problem:
        raise DataError(f"{path}: not a .npy file of numbers: {problem}; save it anew") from problem
    if trace.ndim != 1 or trace.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {trace.dtype} of shape {trace.shape}; one dimension of whole numbers is "
            "allowed"
        )
    for start in range(0, len(trace), IDS_AT_ONCE):
        piece = np.asarray(trace[start : start + IDS_AT_ONCE])
        if trace.dtype.kind == "i" and piece.min() < 0:
            place = start + int(np.argmax(piece < 0))
            raise DataError(
                f"{path}: entry {place + 1} is {trace[place]}; 0 .. 2**64 - 1 is allowed"
            )
        yield piece.astype(np.uint64)


def _read_text(path: Path) -> Iterator[Ids]:
    """Lines may be of any length: blocks are cut after their last separator."""
    with path.open("rb") as file:
        line, entry, rest = 1, 0, b""
        while block := rest + file.read(_BYTES_AT_ONCE):
            is_last = len(block) - len(rest) < _BYTES_AT_ONCE
            cut = len(block) if is_last else max(block.rfind(c) for c in b", \t\n") + 1
            block, rest = block[:cut], block[cut:]
            ids = _whole_numbers(block, path, line, entry)
            yield ids
            num_lines = block.count(b"\n")
            line += num_lines
            entry = len(_words(block[block.rfind(b"\n") :])) if num_lines else entry + len(ids)


def _in_pieces(
    parse: Callable[[bytes, Path, int, int], NDArray[Any]], text: bytes, path: Path, line: int
) -> NDArray[Any]:
    """A line's numbers, without a Python object for all of them at once."""
    pieces: list[NDArray[Any]] = []
    entry = start = 0
    while start < len(text):
        stop = start + _BYTES_AT_ONCE
        if stop < len(text):
            stop = max(text.rfind(c, start, stop) for c in (b",", b" ")) + 1 or stop
        pieces.append(parse(text[start:stop], path, line, entry))
        entry += len(pieces[-1])
        start = stop
    return np.concatenate(pieces)


def _whole_numbers(text: bytes, path: Path, line: int, entry: int = 0) -> Ids:
    """The ids of a text that begins in a line, behind so many of the line's entries."""
    if not text.translate(None, b"0123456789, \t\r\n"):
        words = _words(text)
        try:
            return np.fromiter(map(int, words), dtype=np.uint64, count=len(words))
        except (OverflowError, ValueError):  # of more digits than Python takes
            pass  # told below, with its place
    numbers = []
    for row in text.split(b"\n"):
        for word in _words(row):
            entry += 1
            if not word.isdigit() or len(word.lstrip(b"0")) > 20 or int(word) >= 1 << 64:
                raise _wrong_entry(path, line, entry, word, "whole numbers 0 .. 2**64 - 1")
            numbers.append(int(word))
        line, entry = line + 1, 0
    return np.array(numbers, dtype=np.uint64)


def _shares(text: bytes, path: Path, line: int, entry: int = 0) -> NDArray[np.float64]:
    """Cumulative shares; arguments as for `_whole_numbers`."""
    shares = []
    for word in _words(text):
        entry += 1
        try:
            share = float(word)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1 + _SHARE_ERROR:
            raise _wrong_entry(path, line, entry, word, "shares above 0, up to 1,")
        shares.append(share)
    return np.array(shares)


def _words(text: bytes) -> list[bytes]:
    return text.replace(b",", b" ").split()


def _wrong_entry(path: Path, line: int, entry: int, word: bytes, allowed: str) -> DataError:
    shown = word.decode(errors="replace")[:40]
    return DataError(
        f"{path} line {line}: entry {entry} is {shown!r}; {allowed} are allowed, separated by "
        "commas or spaces"
    )


def _check(
    path: Path,
    ids: Ids,
    distances: NDArray[np.int64],
    cumulative: NDArray[np.float64],
) -> None:
    """Refuse a profile that no trace has."""
    if len(np.unique(ids)) != len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise DataError(
            f"{path} line 1: id {values[counts > 1][0]} stands {counts.max()} times; ids are "
            "distinct"
        )
    if distances[0] != 0 or (np.diff(distances) <= 0).any():
        raise DataError(f"{path} line 2: distances must ascend from 0; make the profile again")
    if distances[-1] > len(ids):
        raise DataError(
            f"{path} line 2: distance {distances[-1]} for {len(ids)} ids in line 1; no distance "
            "exceeds the number of ids"
        )
    if len(cumulative) != len(distances):
        raise DataError(
            f"{path} line 3: {len(cumulative)} shares for {len(distances)} distances in line 2; "
            "one each is allowed"
        )
    if (np.diff(cumulative) < 0).any() or abs(cumulative[-1] - 1) > _SHARE_ERROR:
        raise DataError(
            f"{path} line 3: cumulative shares must ascend to 1; make the profile again"
        )


def _line(file: BinaryIO) -> bytes:
    return file.readline().rstrip(b"\r\n")


def _write_line(file: BinaryIO, pieces: Iterable[Sequence[Any] | NDArray[Any]]) -> None:
    """Numbers as text; `tolist` gives Python's own, whose text numpy's types do not have."""
    separator = ""
    for piece in pieces:
        if len(piece):
            file.write((separator + ", ".join(map(repr, np.asarray(piece).tolist()))).encode())
            separator = ", "
    file.write(b"\n")
