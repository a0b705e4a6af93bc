"""Rows a second of `Loader` on a random dataset of Criteo-Terabyte's shape, in the page cache.

Usage: python benchmarks/bench_loader.py [--rows 2000000] [--folder DIR] [--repeats 5] [--json]
The dataset is written where DIR does not hold it yet. Each repeat measures every cell once:
  rows_per_s.B.R.W          the Loader alone: global batch size B, blocks of R rows, W workers;
  gb_per_s.B.R.W            bytes of the delivered batches;
  device_rows_per_s.B.R.W   the same with page-locked batches, each copied to the GPU by one copy;
  copy_gb_per_s.W           the yardstick: bytes that W threads copy from memory to memory.
With --json the last line printed is the result file's content.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import pyarrow as pa
import torch
from results_file import write
from shapes import TERABYTE_ROWS

from fastdlrm import __version__
from fastdlrm.batch import Batch
from fastdlrm.contracts.encoding import HASH_VERSION, Encoding, TableEncoding
from fastdlrm.contracts.manifest import VERSIONS, DatasetManifest, SplitInfo, write_manifest
from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.encode import encoded_schema
from fastdlrm.data.loader import NUM_AHEAD, Loader, SequentialLoader
from fastdlrm.data.rows import Rows
from fastdlrm.data.shuffle import PART_BYTES
from fastdlrm.data.write import new_folder, write_part

NUM_DENSE = 13
MOST_ROWS = 10_000_000
SEED = 1
BATCH_SIZES = (8192, 32_768)
BLOCK_ROWS = (1, 64)
WORKERS = (1, 2, 4, 8, 16)
ROWS_MEASURED = 8_000_000
"""Rows of a cell, at most."""
COPIED_BYTES = 256 << 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help="of the dataset; by default a temporary one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    workers = [w for w in WORKERS if w <= len(os.sched_getaffinity(0))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / f"criteo-{options.rows}"
        if not folder.exists():
            write_dataset(folder, options.rows)
        rows = Dataset.open(folder).split("train")
        for _ in SequentialLoader(rows, 8192):  # compiles, and maps every page
            pass
        samples = []
        for repeat in range(options.repeats):
            samples.append(measure(rows, workers))
            print(f"repeat {repeat} done", flush=True)
    for name in samples[0]:
        print(f"{name}: {statistics.median(s[name] for s in samples):,.2f}")
    config = {
        "num_rows": options.rows,
        "num_dense": NUM_DENSE,
        "num_sparse": len(TERABYTE_ROWS),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    result = write("loader", config, samples)
    print(json.dumps(json.loads(result.read_text())) if options.json else result)


def measure(rows: Rows, workers: list[int]) -> dict[str, float]:
    """Every cell once."""
    sample = {f"copy_gb_per_s.{w}": copy_rate(w) for w in workers}
    for B, R, w in product(BATCH_SIZES, BLOCK_ROWS, workers):
        cell = f"{B}.{R}.{w}"
        rate, row_bytes = loader_rate(rows, B, R, w, pin=False)
        sample[f"rows_per_s.{cell}"] = rate
        sample[f"gb_per_s.{cell}"] = rate * row_bytes / 1e9
        if torch.cuda.is_available():
            sample[f"device_rows_per_s.{cell}"], _ = loader_rate(rows, B, R, w, pin=True)
    return sample


def loader_rate(
    rows: Rows, global_batch_size: int, block_rows: int, num_workers: int, *, pin: bool
) -> tuple[float, float]:
    """Rows a second of a running loader, and bytes a row of its batches.

    Args:
        rows: The split.
        global_batch_size: Of the loader.
        block_rows: Of the loader.
        num_workers: Of the loader.
        pin: Whether batches are page-locked and copied to the GPU.
    """
    loader = Loader(
        rows,
        global_batch_size,
        seed=SEED,
        block_rows=block_rows,
        pin=pin,
        num_workers=num_workers,
    )
    batches = loader.epoch(0)
    take = copy_to_device() if pin else (lambda batch: None)
    for batch in islice(batches, num_workers + NUM_AHEAD + 1):  # gathered before the clock starts
        take(batch)
    start, num_rows, num_bytes = perf_counter_ns(), 0, 0
    for batch in batches:
        take(batch)
        num_rows += batch.num_samples
        num_bytes += batch.buffer.nbytes
        if num_rows >= ROWS_MEASURED:
            break
    if pin:
        torch.cuda.synchronize()
    seconds = (perf_counter_ns() - start) / 1e9
    batches.close()
    return num_rows / seconds, num_bytes / num_rows


def copy_to_device() -> Callable[[Batch], None]:
    """Copies batches one after the other to one place, on a stream of its own."""
    stream, static = torch.cuda.Stream(), {}

    def copy(batch: Batch) -> None:
        B = batch.num_samples
        if B not in static:
            static[B] = Batch.allocate(B, NUM_DENSE, len(TERABYTE_ROWS), device="cuda")
        with torch.cuda.stream(stream):
            static[B].buffer.copy_(batch.buffer, non_blocking=True)

    return copy


def copy_rate(num_threads: int) -> float:
    """GB a second copied from memory to memory."""
    source, target = np.ones(COPIED_BYTES, np.uint8), np.ones(COPIED_BYTES, np.uint8)
    pieces = list(
        zip(
            np.array_split(source, num_threads),
            np.array_split(target, num_threads),
            strict=True,
        )
    )
    with ThreadPoolExecutor(num_threads) as pool:
        start = perf_counter_ns()
        for _ in range(4):
            list(pool.map(lambda piece: np.copyto(piece[1], piece[0]), pieces))
        return 4 * COPIED_BYTES / (perf_counter_ns() - start)


def describe(most_rows: int) -> tuple[Schema, Encoding]:
    """13 dense features and 26 single ids, each of a hashed table of its own."""
    rows = {f"C{i}": min(n, most_rows) for i, n in enumerate(TERABYTE_ROWS, start=1)}
    schema = Schema(
        label=Label(column="label", positive=("1",), negative=("0",)),
        dense=tuple(
            DenseFeature(name=f"I{i}", column=f"I{i}", transform="none", fill=0.0)
            for i in range(1, NUM_DENSE + 1)
        ),
        sparse=tuple(SparseFeature(name=c, column=c, table=c, key="hex") for c in rows),
        tables=tuple(
            Table(name=c, encoding="hash", min_count=1, max_rows=n) for c, n in rows.items()
        ),
    )
    tables = {
        c: TableEncoding(num_embeddings=n, vocabulary="", coverage=1.0) for c, n in rows.items()
    }
    return schema, Encoding(hash_version=HASH_VERSION, dense={}, quantiles={}, tables=tables)


def write_dataset(out: Path, num_rows: int, most_rows: int = MOST_ROWS) -> None:
    """Write a dataset whose ids are skewed to small rows: floor(rows * u^3), u uniform."""
    schema, encoding = describe(most_rows)
    columns = encoded_schema(schema, encoding)
    part_rows = 8 * PART_BYTES // sum(field.type.bit_width for field in columns)
    rng = np.random.default_rng(SEED)
    files, num_positives = {}, 0
    with new_folder(out) as folder:
        for part, start in enumerate(range(0, num_rows, part_rows)):
            n = min(part_rows, num_rows - start)
            labels = rng.random(n, dtype=np.float32) < 0.03
            dense = [rng.standard_normal(n, dtype=np.float32) for _ in schema.dense]
            ids = [
                (encoding.tables[f.table].num_embeddings * rng.random(n) ** 3).astype(np.uint32)
                for f in schema.sparse
            ]
            arrays = [
                pa.array(values.astype(field.type.to_pandas_dtype()))
                for values, field in zip([labels, *dense, *ids], columns, strict=True)
            ]
            path = f"train/part-{part:05d}.arrow"
            rows = pa.RecordBatch.from_arrays(arrays, schema=columns)
            files[path] = write_part(folder / path, rows)
            num_positives += int(labels.sum())
        manifest = DatasetManifest(
            kind="dataset",
            version=VERSIONS["dataset"],
            created_by=__version__,
            commit="",
            config={},
            files=files,
            inputs=(),
            schema=schema,
            encoding=encoding,
            splits={"train": SplitInfo(num_rows=num_rows, num_positives=num_positives)},
        )
        write_manifest(folder, manifest)


if __name__ == "__main__":
    main()
