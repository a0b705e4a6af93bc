"""Columns of a request by compiled code: what nearly all requests consist of.

Which features that is depends on the datatypes that were sent: `CompiledColumns` is made for one
set of them. It writes what the path of `prepare` would (`fastdlrm.export.request_arrow`), bit for
bit, or says that it cannot.

Shapes: n rows, N dense features, F sparse features, K columns.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import FIRST_ID, Schema, SparseFeature, Transform
from fastdlrm.contracts.tensors import BYTES, WireTensor, bfloat16_to_float32
from fastdlrm.data.encode import transform_numbers
from fastdlrm.export.request_kernels import (
    EMPTY_IS_VALUE,
    HASH,
    HEX,
    IDENTITY,
    INT,
    REFERENCE,
    STRING,
    TRIMMED,
    VOCABULARY,
    find_text,
    write_bucket_ids,
    write_integer_ids,
    write_text_ids,
    write_text_numbers,
)
from fastdlrm.export.vocabulary_index import Place, VocabularyIndex

KINDS = {"hex": HEX, "int": INT, "string": STRING}
ENCODINGS = {
    "vocabulary": VOCABULARY,
    "hash": HASH,
    "reference": REFERENCE,
    "identity": IDENTITY,
}
INTEGERS = frozenset(("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"))
"""Datatypes whose numbers are int64 as they are."""
WIDE = frozenset(("INT64", "UINT64"))
"""Datatypes with numbers that float64 does not hold."""
EXACT = 2.0**53
"""Below it every integer is a float64."""

Gathered = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


class CompiledColumns:
    """Encodes features of requests of one set of datatypes; safe to use from several threads.

    Attributes:
        others: The features, dense first, that it does not know how to encode.
    """

    def __init__(
        self,
        schema: Schema,
        encoding: Encoding,
        missing: Sequence[str],
        index: VocabularyIndex,
        datatypes: Mapping[str, str],
        *,
        trims: bool = False,
    ) -> None:
        """Choose the features.

        Args:
            schema: Of the model.
            encoding: What was fitted.
            missing: Texts that stand for a missing value.
            index: The vocabularies.
            datatypes: Of each column.
            trims: Whether white space around a text is no part of it. It says that it cannot
                encode such text; numbers and ids with white space it never knows.
        """
        kinds = {f.name: _kind(f, datatypes[f.column]) for f in schema.sparse}
        of = {
            kind: [(at, f) for at, f in enumerate(schema.sparse) if kinds[f.name] == kind]
            for kind in ("text", "integer", "bucket", "other")
        }
        self.others = tuple(feature for _, feature in of["other"])
        self._vocabulary = (index.keys, index.slots)
        places = {
            kind: np.array(
                [_place(schema, encoding, index, at, f) for at, f in features], dtype=np.int64
            ).reshape(-1, 7)
            for kind, features in of.items()
        }
        known = [text.encode() for text in missing if text]
        ends = np.cumsum([0, *map(len, known)]).astype(np.int64)
        self._missing = (np.frombuffer(b"".join(known), dtype=np.uint8).copy(), ends)

        self._texts = [f.column for _, f in of["text"]]
        self._text_places = places["text"]
        more = (0 if "" in missing else EMPTY_IS_VALUE) + (TRIMMED if trims else 0)
        self._text_kinds = np.array(
            [KINDS[f.key] + (more if f.key == "string" else 0) for _, f in of["text"]],
            dtype=np.int64,
        )
        self._integers = [f.column for _, f in of["integer"]]
        self._integer_places = places["integer"]
        edges = [encoding.quantiles[f.name] for _, f in of["bucket"]]
        self._edges = np.array([edge for each in edges for edge in each], dtype=np.float64)
        self._edge_starts = np.cumsum([0, *map(len, edges)]).astype(np.int64)
        self._bucket_places = places["bucket"]
        self._dense = _Dense(schema, encoding)
        columns = [*self._dense.columns, *(f.column for _, f in of["bucket"])]
        self._num_numbers = len(columns)
        numbered = [(row, name, datatypes[name]) for row, name in enumerate(columns)]
        self._typed = [each for each in numbered if each[2] != BYTES]
        self._wide = [row for row, _, datatype in self._typed if datatype in WIDE]
        self._number_texts = [name for _, name, datatype in numbered if datatype == BYTES]
        self._number_rows = np.array(
            [row for row, _, datatype in numbered if datatype == BYTES], dtype=np.int64
        )

    def write(
        self,
        inputs: Mapping[str, WireTensor],
        start: int,
        stop: int,
        dense: NDArray[np.float32],
        ids: NDArray[np.int32],
    ) -> bool:
        """Write rows start .. stop - 1 of a request.

        Args:
            inputs: Columns of the datatypes that this was made for.
            start: First row.
            stop: Row after the last.
            dense: To write, shape (n, N).
            ids: To write, shape (F, n); the rows of other features are left alone.

        Returns:
            Whether all went well; if not, what was written is undefined.
        """
        if self._num_numbers:
            numbers = self._numbers(inputs, start, stop)
            if numbers is None or not self._dense.write(numbers, dense):
                return False
            if len(self._bucket_places) and not write_bucket_ids(
                numbers[len(self._dense.columns) :],
                self._edges,
                self._edge_starts,
                self._bucket_places,
                self._vocabulary,
                ids,
            ):
                return False
        if self._texts:
            gathered = _gathered(inputs, self._texts, start, stop)
            if gathered is None or not write_text_ids(
                *gathered,
                self._text_kinds,
                self._text_places,
                self._vocabulary,
                self._missing,
                ids,
            ):
                return False
        if not self._integers:
            return True
        columns = [_window(inputs[name], start, stop) for name in self._integers]
        values = np.concatenate(columns, dtype=np.int64)
        starts = _starts(columns)
        return write_integer_ids(values, starts, self._integer_places, self._vocabulary, ids)

    def _numbers(
        self, inputs: Mapping[str, WireTensor], start: int, stop: int
    ) -> NDArray[np.float64] | None:
        """All numbers, shape (K, n), NaN where missing; None where one is not finite or wrong."""
        numbers = np.empty((self._num_numbers, stop - start))
        if self._number_texts and not self._write_texts(inputs, start, stop, numbers):
            return None
        for row, name, datatype in self._typed:
            data = _window(inputs[name], start, stop)
            numbers[row] = bfloat16_to_float32(data) if datatype == "BF16" else data
        if self._wide and (np.abs(numbers[self._wide]) >= EXACT).any():
            return None
        return None if np.isinf(numbers).any() else numbers

    def _write_texts(
        self,
        inputs: Mapping[str, WireTensor],
        start: int,
        stop: int,
        numbers: NDArray[np.float64],
    ) -> bool:
        gathered = _gathered(inputs, self._number_texts, start, stop)
        if gathered is None:
            return False
        data, _, counts = gathered
        most = int(counts.sum())
        where = np.empty((most, 3), dtype=np.int64)
        offsets = np.empty(most + 1, dtype=np.int32)
        texts = np.empty(len(data), dtype=np.uint8)
        rare = (where, offsets, texts)
        count = write_text_numbers(*gathered, self._missing, self._number_rows, numbers, rare)
        if count <= 0:
            return count == 0
        buffers = pa.py_buffer(offsets), pa.py_buffer(texts)
        try:
            parsed = pc.cast(pa.StringArray.from_buffers(count, *buffers), pa.float64())
        except pa.ArrowInvalid:
            return False
        for (row, first, last), number in zip(
            where[:count].tolist(), parsed.to_numpy().tolist(), strict=True
        ):
            numbers[row, first:last] = number
        return True


class _Dense:
    """Numbers of all dense features -> what the model sees, a transform at a time."""

    def __init__(self, schema: Schema, encoding: Encoding) -> None:
        order = sorted(range(len(schema.dense)), key=lambda at: schema.dense[at].transform)
        features = [schema.dense[at] for at in order]
        self.columns = [f.column for f in features]
        self._fill = np.array([[f.fill] for f in features])
        self._groups: list[tuple[Transform, slice, list[int], Any, Any]] = []
        for transform in dict.fromkeys(f.transform for f in features):
            rows = [row for row, f in enumerate(features) if f.transform == transform]
            window = slice(rows[0], rows[-1] + 1)
            mean: Any = 0.0
            std: Any = 1.0
            if transform == "standardize":
                statistics = [encoding.dense[f.name] for f in features[window]]
                mean = np.array([[s.mean] for s in statistics])
                std = np.array([[s.std] for s in statistics])
            self._groups.append((transform, window, order[window], mean, std))

    def write(self, numbers: NDArray[np.float64], dense: NDArray[np.float32]) -> bool:
        """Write `dense`, shape (n, N), from the first N rows of `numbers`; False if not finite."""
        filled = numbers[: len(self.columns)]
        is_missing = np.isnan(filled)
        if is_missing.any():
            filled = np.where(is_missing, self._fill, filled)
        for transform, window, places, mean, std in self._groups:
            transformed = transform_numbers(transform, filled[window], mean, std)
            dense[:, places] = transformed.T
        return bool(np.isfinite(dense).all())


def _kind(feature: SparseFeature, datatype: str) -> str:
    """Which kernel encodes a feature."""
    if feature.bag:
        return "other"
    if feature.key == "quantile":
        return "bucket"
    if feature.key in KINDS and datatype == BYTES:
        return "text"
    return "integer" if feature.key == "int" and datatype in INTEGERS else "other"


def _place(
    schema: Schema, encoding: Encoding, index: VocabularyIndex, at: int, feature: SparseFeature
) -> tuple[int, ...]:
    """A row of `places`, as the kernels take it."""
    table, fitted = schema.table_of(feature), encoding.tables[feature.table]
    place = index.places.get(table.name, Place(0, 0, 0, 0))
    modulus = {
        "vocabulary": 0,
        "hash": fitted.num_embeddings - FIRST_ID,
        "reference": table.max_rows,
        "identity": fitted.num_embeddings,
    }[table.encoding]
    sizes = (place.first_key, place.num_keys, place.first_slot, place.num_slots)
    return (ENCODINGS[table.encoding], *sizes, modulus, at)


def _gathered(
    inputs: Mapping[str, WireTensor], columns: Sequence[str], start: int, stop: int
) -> Gathered | None:
    """Rows of columns of text in one array, where each column starts, and its number of texts."""
    pieces, counts = [], []
    for name in columns:
        tensor = inputs[name]
        data, num_rows = tensor.data, tensor.shape[0]
        if stop - start != num_rows != 1:
            begin = find_text(data, 0, start)
            if begin < 0:
                return None
            end = len(data) if stop == num_rows else find_text(data, begin, stop - start)
            if end < 0:
                return None
            data = data[begin:end]
        pieces.append(data)
        counts.append(1 if num_rows == 1 else stop - start)
    return np.concatenate(pieces), _starts(pieces), np.array(counts, dtype=np.int64)


def _window(tensor: WireTensor, start: int, stop: int) -> NDArray[Any]:
    """The numbers of some rows, or the one that all rows share."""
    return tensor.data if tensor.shape[0] == 1 else tensor.data[start:stop]


def _starts(pieces: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.array([0, *accumulate(map(len, pieces))], dtype=np.int64)
