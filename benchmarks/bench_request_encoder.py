"""Requests of Criteo's shape -> batches on one core: compiled columns, and the path of `prepare`.

Usage: python benchmarks/bench_request_encoder.py [--seconds 20] [--vocabulary 200000]
A request has 13 numbers and 26 hexadecimal ids a row; three quarters of the ids are the same tenth
of a vocabulary. Columns of the result, all in ms a request:
  R.text_ms      R rows, everything sent as text; encoded and joined to a batch
  R.fp32_ms      numbers as FP32, ids as text
  R.shared_ms    as text; half of the columns hold one value for all rows
  R.encoded_ms   sent as `dense` and `ids`
  R.check_ms     what the front does: names, datatypes and shapes
  R.prepare_ms   as text, through Arrow, `Converter` and `Encoder`
  merged_ms      32 requests of 4 rows, encoded and joined to one batch
Each system is timed in turn with the others.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from results_file import write
from timing import System, conditions, interleave, load_average, medians

from fastdlrm.contracts.encoding import HASH_VERSION, Encoding
from fastdlrm.contracts.payload import pack, unpack
from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.data.vocabulary import Vocabulary, write_vocabulary
from fastdlrm.export.request_arrow import ArrowColumns
from fastdlrm.export.request_encoder import RequestEncoder
from fastdlrm.export.vocabulary_index import INDEX, VocabularyIndex, write_index

NUM_DENSE, NUM_SPARSE = 13, 26
ROWS = (1, 100, 1000)
NUM_REQUESTS = 20
"""Different requests of a size, so that not the same rows are looked up every time."""
MERGED, MERGED_ROWS = 32, 4
SEED = 1

Inputs = dict[str, WireTensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--vocabulary", type=int, default=200_000, help="values of each feature")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_before = load_average()
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema, encoding, keys = fitted(folder, options.vocabulary, rng)
        write_index(folder / INDEX, folder, encoding)
        index = VocabularyIndex.open(folder / INDEX, encoding)
        encoder = RequestEncoder(schema, encoding, ("",), index)
        features = (*schema.dense, *schema.sparse)
        arrow = ArrowColumns(features, schema, encoding, ("",), index.tables())
        requests = Requests(keys, rng)
        found = [system for rows in ROWS for system in systems(encoder, arrow, requests, rows)]
        found.append(System("merged", merged(encoder, requests)))
        samples = interleave(found, torch.device("cpu"), options.seconds)
    config = {
        "num_dense": NUM_DENSE,
        "num_sparse": NUM_SPARSE,
        "vocabulary": options.vocabulary,
        "cores": len(os.sched_getaffinity(0)),
        **conditions(samples, load_before),
    }
    for column, value in medians(samples).items():
        print(f"{column}: {value:.4f}")
    print(write("request-encoder", config, samples, medians(samples)))


class Requests:
    """Draws requests."""

    def __init__(self, keys: Sequence[np.ndarray], rng: np.random.Generator) -> None:
        self._keys = keys
        self._rng = rng

    def columns(self, num_rows: int, numbers: str = "text", *, shares: bool = False) -> Inputs:
        """A request of raw columns, as a worker gets it."""
        inputs: Inputs = {}
        for i in range(NUM_DENSE):
            size = 1 if shares and i % 2 else num_rows
            values = self._rng.integers(0, 1000, size)
            inputs[f"I{i}"] = (
                WireTensor.from_texts(list(map(str, values.tolist())))
                if numbers == "text"
                else WireTensor.from_array(values.astype(numbers))
            )
        for i, keys in enumerate(self._keys):
            size = 1 if shares and i % 2 else num_rows
            places = self._rng.random(size) ** 8 * len(keys)
            texts = [f"{key:08x}" for key in keys[places.astype(np.int64)].tolist()]
            inputs[f"C{i}"] = WireTensor.from_texts(texts)
        return unpack(memoryview(pack(inputs).to_bytes()))

    def encoded(self, num_rows: int) -> Inputs:
        """A request of encoded rows."""
        most = min(len(keys) for keys in self._keys)
        dense = self._rng.standard_normal((num_rows, NUM_DENSE), dtype=np.float32)
        ids = self._rng.integers(0, most, (num_rows, NUM_SPARSE), dtype=np.int32)
        inputs = {"dense": WireTensor.from_array(dense), "ids": WireTensor.from_array(ids)}
        return unpack(memoryview(pack(inputs).to_bytes()))


def systems(
    encoder: RequestEncoder, arrow: ArrowColumns, requests: Requests, rows: int
) -> list[System]:
    """What is timed for requests of a size."""
    texts = [requests.columns(rows) for _ in range(NUM_REQUESTS)]
    kinds = {
        "text": texts,
        "fp32": [requests.columns(rows, "float32") for _ in range(NUM_REQUESTS)],
        "shared": [requests.columns(rows, shares=True) for _ in range(NUM_REQUESTS)],
        "encoded": [requests.encoded(rows) for _ in range(NUM_REQUESTS)],
    }

    def encode(inputs: list[Inputs]) -> Callable[[int], object]:
        return lambda k: encoder.join([encoder.encode(inputs[k % NUM_REQUESTS], 0, rows)])

    return [
        *(System(f"{rows}.{kind}", encode(inputs)) for kind, inputs in kinds.items()),
        System(f"{rows}.check", lambda k: encoder.num_rows(texts[k % NUM_REQUESTS])),
        System(f"{rows}.prepare", lambda k: arrow.encode(texts[k % NUM_REQUESTS], 0, rows)),
    ]


def merged(encoder: RequestEncoder, requests: Requests) -> Callable[[int], object]:
    """Small requests of several clients as one batch."""
    inputs = [requests.columns(MERGED_ROWS) for _ in range(MERGED)]
    return lambda k: encoder.join([encoder.encode(each, 0, MERGED_ROWS) for each in inputs])


def fitted(
    folder: Path, size: int, rng: np.random.Generator
) -> tuple[Schema, Encoding, list[np.ndarray]]:
    """Schema, encoding, and the keys of each vocabulary, which are written to a folder."""
    names = [f"C{i}" for i in range(NUM_SPARSE)]
    schema = Schema(
        label=Label(column="label", positive=("1",), negative=("0",)),
        dense=tuple(
            DenseFeature(name=f"I{i}", column=f"I{i}", transform="log1p", fill=0.0)
            for i in range(NUM_DENSE)
        ),
        sparse=tuple(SparseFeature(name=c, column=c, table=c, key="hex") for c in names),
        tables=tuple(Table(name=c, encoding="vocabulary", min_count=1, max_rows=0) for c in names),
    )
    keys, tables = [], {}
    for table in schema.tables:
        keys.append(rng.permutation(np.unique(rng.integers(0, 2**32, size, dtype=np.uint64))))
        counts = np.ones(len(keys[-1]), dtype=np.uint64)
        vocabulary = Vocabulary(keys[-1], counts, None, len(counts))
        tables[table.name] = write_vocabulary(folder, table, vocabulary, "hex", ())
    encoding = Encoding(hash_version=HASH_VERSION, dense={}, quantiles={}, tables=tables)
    return schema, encoding, keys


if __name__ == "__main__":
    main()
