"""Random numbers or synthetic traces -> dataset: what `prepare` would write, without a raw file.

Invariants: a split's rows are a function of (config, seed, split), and those of another split are
independent of them; ids from traces go on through train, validation and test, in this order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from fastdlrm import __version__
from fastdlrm.batch import Batch
from fastdlrm.config import to_tree
from fastdlrm.contracts import hashing
from fastdlrm.contracts.encoding import HASH_VERSION, Encoding, TableEncoding
from fastdlrm.contracts.manifest import (
    VERSIONS,
    DatasetManifest,
    FileEntry,
    InputFile,
    SplitInfo,
    sha256_of,
    source_commit,
    write_manifest,
)
from fastdlrm.contracts.schema import FIRST_ID, Schema
from fastdlrm.data.config import DataConfig
from fastdlrm.data.dataset import SPLITS
from fastdlrm.data.encode import encoded_schema
from fastdlrm.data.random import RandomBatches, RandomShape
from fastdlrm.data.synthetic import RandomConfig
from fastdlrm.data.trace import Rule, TraceGenerator
from fastdlrm.data.trace_file import read_profile
from fastdlrm.data.write import new_folder, write_parts
from fastdlrm.errors import ConfigError, DataError

DRAW_ROWS = 16_384
"""Rows drawn at once. Another number would give other rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Profiles that the ids of all sparse features are drawn from.

    Attributes:
        paths: Of the profiles, one a sparse feature, in the order of the schema.
        rule: How distances are drawn.
    """

    paths: Sequence[Path]
    rule: Rule

    def generators(self, schema: Schema, seed: int) -> list[TraceGenerator]:
        """One a sparse feature.

        Raises:
            ConfigError: There is not one profile a feature.
            DataError: A profile cannot be read, or has an id beyond its table.
        """
        if len(self.paths) != len(schema.sparse):
            raise ConfigError(
                f"--profile: {len(self.paths)} profiles for {len(schema.sparse)} sparse features; "
                "one each is needed"
            )
        made = []
        for path, feature in zip(self.paths, schema.sparse, strict=True):
            profile = read_profile(path)
            rows = schema.table_of(feature).max_rows
            largest = int(profile.ids.max())
            if largest >= rows:
                raise DataError(
                    f"{path} line 1: id {largest} >= max_rows {rows} of the table of feature "
                    f"{feature.name!r}; raise its max_rows in data.sparse, or profile rows of a "
                    "prepared dataset"
                )
            own_seed = hashing.mix(seed ^ hashing.text_key(feature.name))
            made.append(TraceGenerator(profile, own_seed, self.rule))
        return made

    def inputs(self) -> tuple[InputFile, ...]:
        """The profiles, for the manifest."""
        return tuple(
            InputFile(
                name=path.name,
                sha256=sha256_of(path),
                size_bytes=path.stat().st_size,
                num_rows=3,
            )
            for path in self.paths
        )


def write_random(
    out: Path,
    data: DataConfig,
    config: RandomConfig,
    num_rows: Mapping[str, int],
    *,
    seed: int,
    traces: Traces | None = None,
    progress: Callable[[int], None] | None = None,
) -> DatasetManifest:
    """Write a dataset of random rows.

    Args:
        out: Folder to make; absent or empty.
        data: Features and tables; no raw file is read.
        config: How they are drawn.
        num_rows: By split, train among them; a split with 0 rows is absent.
        seed: 0 .. 2**64 - 1.
        traces: Where ids come from, if not from `config`.
        progress: Takes the number of rows drawn since it was last called.

    Raises:
        ConfigError: The schema does not suit random data, or a number is out of range.
        DataError: A profile does not fit, `out` is not empty, or the disk is full.
    """
    schema = data.schema()
    shape = RandomShape.of(schema, config)
    _check(num_rows, seed)
    encoding = random_encoding(schema)
    generators = traces.generators(schema, seed) if traces else []
    files: dict[str, FileEntry] = {}
    splits: dict[str, SplitInfo] = {}
    with new_folder(out) as folder:
        for split in SPLITS:
            if not num_rows.get(split):
                continue
            batches = _batches(shape, seed, split)
            rows = _rows(batches, num_rows[split], generators, schema, encoding, progress)
            written = write_parts(folder, split, rows)
            files |= written.files
            splits[split] = written.info
        manifest = DatasetManifest(
            kind="dataset",
            version=VERSIONS["dataset"],
            created_by=__version__,
            commit=source_commit(),
            config={
                "data": to_tree(data),
                "random": to_tree(config) | {"seed": seed, "rule": traces.rule if traces else ""},
            },
            files=files,
            inputs=traces.inputs() if traces else (),
            schema=schema,
            encoding=encoding,
            splits=splits,
        )
        write_manifest(folder, manifest)
    return manifest


def record_batch(batch: Batch, schema: Schema, encoding: Encoding) -> pa.RecordBatch:
    """The encoded rows of a batch on the CPU, unweighted; see `encoded_schema`."""
    fields = encoded_schema(schema, encoding)
    B, F = batch.num_samples, len(schema.sparse)
    columns = [pa.array(batch.labels.numpy().astype(np.uint8))]
    columns += [pa.array(np.ascontiguousarray(x)) for x in batch.dense.numpy().T]
    sparse = batch.sparse
    lengths = np.ones((F, B), np.int64) if sparse.lengths is None else sparse.lengths.numpy()
    lengths = lengths.reshape(F, B)
    ends = np.cumsum(lengths.sum(1, dtype=np.int64))
    for feature, of_feature, end in zip(schema.sparse, lengths, ends, strict=True):
        total = int(of_feature.sum())
        kind = fields.field(feature.name).type
        id_type = (kind.value_type if feature.bag else kind).to_pandas_dtype()
        ids = pa.array(sparse.ids[end - total : end].numpy().astype(id_type))
        if feature.bag:
            offsets = np.zeros(B + 1, np.int32)
            np.cumsum(of_feature, out=offsets[1:])
            ids = pa.ListArray.from_arrays(pa.array(offsets), ids)
        columns.append(ids)
    return pa.RecordBatch.from_arrays(columns, schema=fields)


def _batches(shape: RandomShape, seed: int, split: str) -> RandomBatches:
    return RandomBatches(
        shape=shape, batch_size=DRAW_ROWS, seed=seed, split=split, device=torch.device("cpu")
    )


def _rows(
    batches: RandomBatches,
    num_rows: int,
    generators: Sequence[TraceGenerator],
    schema: Schema,
    encoding: Encoding,
    progress: Callable[[int], None] | None,
) -> Iterator[pa.RecordBatch]:
    """A split's rows."""
    for index in range(-(-num_rows // DRAW_ROWS)):
        batch = batches[index]
        size = min(DRAW_ROWS, num_rows - index * DRAW_ROWS)
        if size < DRAW_ROWS:
            batch = batch.slice(0, size)
        _trace(batch, generators)
        yield record_batch(batch, schema, encoding)
        if progress is not None:
            progress(size)


def _trace(batch: Batch, generators: Sequence[TraceGenerator]) -> None:
    """Put the next ids of the traces into a batch."""
    lengths = batch.sparse.lengths
    start = 0
    for f, generator in enumerate(generators):
        size = batch.num_samples
        if lengths is not None:
            size = int(lengths.view(len(generators), -1)[f].sum())
        ids = generator.draw(size).astype(np.int32)
        batch.sparse.ids[start : start + size] = torch.from_numpy(ids)
        start += size


def random_encoding(schema: Schema) -> Encoding:
    """Sizes of the tables of random data: `max_rows` each."""
    return Encoding(
        hash_version=HASH_VERSION,
        dense={},
        quantiles={},
        tables={
            table.name: TableEncoding(
                num_embeddings=table.max_rows,
                vocabulary="",
                coverage=1.0,
                first_id=0 if table.encoding == "identity" else FIRST_ID,
            )
            for table in schema.tables
        },
    )


def _check(num_rows: Mapping[str, int], seed: int) -> None:
    if num_rows.get("train", 0) < 1 or min(num_rows.values()) < 0:
        raise ConfigError(
            f"random data: rows {dict(num_rows)}; 1 or more of train, 0 or more of the others are "
            "allowed"
        )
    if not 0 <= seed < 2**64:
        raise ConfigError(f"random data: seed is {seed}; 0 .. 2**64 - 1 is allowed")
