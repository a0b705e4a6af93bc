"""How much disk a `prepare` needs, estimated from the sizes of its inputs and the rows of one.

Inputs may be compressed, so these are estimates: each gzipped file is taken to hold as much text a
byte as its beginning does, and every row to be like the first rows of the largest file.
"""

import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastdlrm.contracts.schema import Schema
from fastdlrm.data.config import DataConfig, SourceConfig
from fastdlrm.data.int32 import VALUE_BYTES
from fastdlrm.data.source import stage_file
from fastdlrm.data.staged import StagedRows, sparse_column
from fastdlrm.data.work import work_path
from fastdlrm.errors import DataError

SAMPLE_BYTES = 1 << 20
"""Read from the beginning of a text file, as it lies on disk."""
SAMPLE_ROWS = 32_768
"""Read from the beginning of a Parquet file."""

_PAIR_BYTES = 16
_MOST = 1 << 32
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """What a `prepare` takes at most, about.

    Attributes:
        num_rows: Of all inputs.
        staged_bytes: A row, as it is staged.
        counted_bytes: A row, as its ids are counted.
        encoded_bytes: A row of the dataset.
    """

    num_rows: int
    staged_bytes: float
    counted_bytes: float
    encoded_bytes: float

    @property
    def num_bytes(self) -> int:
        """Of the folder while it is fullest."""
        fitting = self.staged_bytes + self.counted_bytes
        encoding = self.staged_bytes + self.encoded_bytes
        writing = 2 * self.encoded_bytes
        return int(self.num_rows * max(fitting, encoding, writing))


def require_disk(inputs: Sequence[Path], config: DataConfig, out: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        inputs: Raw files.
        config: Their layout and features.
        out: Folder to make; what its work folder already holds counts as free.

    Raises:
        DataError: Too little is free.
    """
    need = estimate(inputs, config)
    if need is None:
        return
    place = next(folder for folder in out.resolve().parents if folder.is_dir())
    done = sum(path.stat().st_size for path in work_path(out).rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free + done
    if need.num_bytes > free:
        raise DataError(
            f"{out}: about {need.num_bytes / _GIB:,.1f} GiB of disk are needed, "
            f"{free / _GIB:,.1f} GiB are free in {place}; estimated from the sizes of the inputs "
            f"and the first rows of one: {need.num_rows:,} rows, {need.staged_bytes:.0f} bytes "
            f"each while they are staged, {need.encoded_bytes:.0f} encoded; free space, name an "
            "--out on another disk, or pass --skip-disk-check"
        )


def estimate(inputs: Sequence[Path], config: DataConfig) -> DiskNeed | None:
    """The need, or None where the largest input cannot be read, which staging it will explain."""
    schema = config.schema()
    largest = max(inputs, key=lambda path: path.stat().st_size)
    with tempfile.TemporaryDirectory() as name:
        sample, out = Path(name) / "rows", Path(name) / "staged"
        try:
            if config.source.format == "parquet":
                num_rows = sum(pq.read_metadata(path).num_rows for path in inputs)
                _write_rows(largest, sample)
            else:
                sizes = [_text_bytes(path) for path in inputs]
                sample.write_bytes(_whole_rows(_beginning(largest)[0], config.source))
            staged = stage_file(sample, config.source, schema, out, remedy=None)
        except (DataError, pa.ArrowException, zlib.error):
            return None
        if config.source.format != "parquet":
            found = staged.input.num_rows + staged.input.num_bad_rows
            num_rows = int(sum(sizes) * found / max(1, sample.stat().st_size))
        return _of_sample(out, schema, num_rows)


def _beginning(path: Path) -> tuple[bytes, float]:
    """The text that a file begins with, and the bytes of text a byte on disk."""
    with path.open("rb") as file:
        raw = file.read(SAMPLE_BYTES)
    if not raw.startswith(b"\x1f\x8b"):
        return raw, 1.0
    member = zlib.decompressobj(31)
    text = member.decompress(raw)
    return text, len(text) / max(1, len(raw) - len(member.unused_data))


def _whole_rows(text: bytes, source: SourceConfig) -> bytes:
    """What of the text are whole rows."""
    if source.format == "int32":
        row_bytes = VALUE_BYTES * max(1, len(source.columns))
        return text[: len(text) // row_bytes * row_bytes]
    return text[: text.rfind(b"\n") + 1] or text


def _text_bytes(path: Path) -> float:
    return path.stat().st_size * _beginning(path)[1]


def _write_rows(path: Path, sample: Path) -> None:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        rows = next(file.iter_batches(SAMPLE_ROWS), None)
        if rows is not None:
            pq.write_table(pa.Table.from_batches([rows]), sample)


def _of_sample(staged: Path, schema: Schema, num_rows: int) -> DiskNeed:
    rows = StagedRows([staged])
    table = pq.read_table(staged)
    counted, encoded = 0.0, 1.0 + 4 * len(schema.dense)
    for feature in schema.sparse:
        column, settings = sparse_column(feature.name), schema.table_of(feature)
        values = pc.list_flatten(table[column]) if feature.bag else table[column]
        num_distinct = pc.count_distinct(values).as_py()
        length = rows.num_ids.get(column, rows.num_rows) / rows.num_rows
        num_ids = settings.max_rows or _MOST
        if settings.encoding in ("vocabulary", "reference"):
            # Room for 4 or 32 times the values that the sample shows.
            num_ids = min(num_ids, num_distinct * (4 if num_distinct <= 64 else 32))
        encoded += length * _id_bytes(num_ids) + 4 * feature.bag
        encoded += (4 + 4 * length) * feature.is_weighted
        if settings.encoding == "vocabulary":
            text = pc.mean(pc.binary_length(values)).as_py() if feature.key == "string" else 0.0
            counted += (_PAIR_BYTES + (text or 0.0)) * num_distinct / rows.num_rows
    return DiskNeed(num_rows, staged.stat().st_size / rows.num_rows, counted, encoded)


def _id_bytes(num_embeddings: int) -> int:
    return 1 if num_embeddings <= 1 << 8 else 2 if num_embeddings <= 1 << 16 else 4
