"""Raw rows of a log as an exported model keeps them: what clients really send.

Each column is text, as a request would write it, or a list of texts where a bag has no separator.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastdlrm.contracts.schema import Schema
from fastdlrm.data.config import SourceConfig
from fastdlrm.data.convert import Converter
from fastdlrm.data.source import open_raw
from fastdlrm.data.values import texts, without_nan
from fastdlrm.errors import DataError

MAX_ROWS_READ = 1 << 16
"""Rows of each file that are drawn from, the first ones."""


def logged_rows(
    paths: Sequence[Path], source: SourceConfig, schema: Schema, num_rows: int, seed: int
) -> pa.RecordBatch:
    """Draw rows of raw files, without replacement.

    Args:
        paths: Raw files of the format that the model was trained from, with or without labels.
        source: Their layout.
        schema: Features.
        num_rows: Most rows.
        seed: The same seed draws the same rows.

    Returns:
        The raw columns, at least one row.

    Raises:
        DataError: A file is missing or damaged, a row of it is wrong, or there is none.
        ConfigError: The layout is contradictory.
    """
    names = Converter("", schema, source.missing, labelled=False, time_column="").columns
    found = [batch for path in paths for batch in _batches(path, source, schema, names)]
    rows = pa.Table.from_batches(found) if found else None
    if rows is None or not rows.num_rows:
        raise DataError(f"{', '.join(path.name for path in paths)}: no rows; name other files")
    drawn = np.random.default_rng(seed).permutation(rows.num_rows)[:num_rows]
    (batch,) = rows.take(pa.array(drawn)).combine_chunks().to_batches()
    return batch


def _batches(
    path: Path, source: SourceConfig, schema: Schema, names: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The first rows of a file, as text."""
    reader = open_raw(path, source, names, schema.label.column)
    converter = Converter(path.name, schema, source.missing, labelled=False, time_column="")
    separators = {f.column: f.separator for f in schema.sparse if f.bag}
    separators |= {f.weight_column: f.separator for f in schema.sparse if f.is_weighted}
    num_rows = 0
    for raw in reader.batches():
        rows = raw.columns.slice(0, MAX_ROWS_READ - num_rows)
        columns = {
            name: _as_text(rows.column(name), separators.get(name, ""), source) for name in names
        }
        texted = pa.RecordBatch.from_pydict(columns)
        lines = {int(raw.lines[row]): what for row, what in converter.convert(texted)[1].items()}
        if wrong := min([*raw.bad, *lines.items()], default=None):
            raise DataError(f"{path.name} row {wrong[0]}: {wrong[1]}; correct the row")
        yield texted
        num_rows += rows.num_rows
        if num_rows == MAX_ROWS_READ:
            return


def _as_text(values: pa.Array, separator: str, source: SourceConfig) -> pa.Array:
    if pa.types.is_list(values.type):
        elements = _plain_text(values.flatten()).fill_null("")
        offsets = np.concatenate([[0], np.cumsum(values.value_lengths().fill_null(0))])
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), elements)
        if not separator:
            return lists
        return pa.array([separator.join(bag) for bag in lists.to_pylist()], pa.string())
    text = _plain_text(values)
    if "" in source.missing or not source.missing:
        return text
    # an empty text would be a value of its own
    return text.fill_null(source.missing[0])


def _plain_text(values: pa.Array) -> pa.Array:
    return texts(without_nan(values))[0]
