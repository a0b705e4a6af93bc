"""Columns of a request by the very code of `prepare`: what is rare, and what is wrong.

The columns become an Arrow batch as a raw file would give it, and go through `Converter` and
`Encoder`. What that refuses is wrong, and its words are those of `fastdlrm predict`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature
from fastdlrm.contracts.signature import Signature
from fastdlrm.contracts.tensors import BYTES, WireTensor, bfloat16_to_float32, place
from fastdlrm.data.convert import Converter
from fastdlrm.data.encode import Encoder
from fastdlrm.data.keytable import KeyTable
from fastdlrm.errors import DataError, RequestError
from fastdlrm.export.request_kernels import find_text, pack_texts


class ArrowColumns:
    """Encodes some features of requests.

    Attributes:
        schema: The features.
    """

    def __init__(
        self,
        features: Sequence[DenseFeature | SparseFeature],
        schema: Schema,
        encoding: Encoding,
        missing: Sequence[str],
        tables: Mapping[str, KeyTable],
        *,
        trims: bool = False,
    ) -> None:
        """Choose the features.

        Args:
            features: Of the schema.
            schema: Of the model.
            encoding: What was fitted.
            missing: Texts that stand for a missing value.
            tables: Those with a vocabulary.
            trims: Whether white space around a value's text is no part of it.
        """
        self._trims = trims
        sparse = tuple(f for f in features if isinstance(f, SparseFeature))
        used = {f.table for f in sparse}
        self.schema = Schema(
            label=schema.label,
            dense=tuple(f for f in features if isinstance(f, DenseFeature)),
            sparse=sparse,
            tables=tuple(t for t in schema.tables if t.name in used),
        )
        self._columns = Signature(self.schema).columns
        self._converter = Converter("request", self.schema, missing, labelled=False, time_column="")
        self._encoder = Encoder(self.schema, encoding, tables)
        texts = {f.column for f in schema.sparse if f.key == "string" and not f.bag}
        self._with_empty_texts = texts if "" not in missing else set()

    def encode(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> pa.RecordBatch:
        """Encode rows start .. stop - 1 of a request.

        Returns:
            Encoded columns, as `fastdlrm.data.encode` says.

        Raises:
            RequestError: A value is wrong.
        """
        raw = self.raw(inputs, start, stop)
        staged, flaws = self._converter.convert(raw)
        if flaws:
            row, what = min(flaws.items())
            raise RequestError(f"row {start + row}: {what}; correct it")
        try:
            return self._encoder.encode(staged)
        except DataError:
            row, problem = self._first_refused(staged)
            raise RequestError(f"row {start + row}: {problem}") from None

    def raw(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> pa.RecordBatch:
        """Rows start .. stop - 1 as a raw file would give them, missing values null.

        Raises:
            RequestError: Texts are damaged or not UTF-8.
        """
        arrays = {}
        for name, column in self._columns.items():
            lengths, where = column.lengths_in(inputs), place("input", name)
            is_null = not lengths and name not in self._with_empty_texts
            if lengths:
                array = _bags(inputs[name], inputs[lengths], start, stop, where)
                is_shared = inputs[lengths].shape[0] == 1
            else:
                is_shared = inputs[name].shape[0] == 1
                window = (0, 1) if is_shared else (start, stop)
                array = _values(
                    inputs[name], *window, where, empty_is_null=is_null, trims=self._trims
                )
            if is_shared and stop - start > 1:
                array = array.take(pa.array(np.zeros(stop - start, dtype=np.int32)))
            arrays[name] = array
        return pa.RecordBatch.from_pydict(arrays)

    def _first_refused(self, staged: pa.RecordBatch) -> tuple[int, DataError]:
        """The first row that the encoder refuses, and what it says of it alone."""
        low, high = 0, staged.num_rows
        while high - low > 1:
            middle = (low + high) // 2
            if self._problem(staged.slice(low, middle - low)) is None:
                low = middle
            else:
                high = middle
        problem = self._problem(staged.slice(low, 1))
        assert problem is not None
        return low, problem

    def _problem(self, staged: pa.RecordBatch) -> DataError | None:
        try:
            self._encoder.encode(staged)
        except DataError as problem:
            return problem
        return None


def _values(
    tensor: WireTensor,
    start: int,
    stop: int,
    where: str,
    *,
    empty_is_null: bool,
    trims: bool = False,
) -> pa.Array:
    """Elements start .. stop - 1; NaN is null, and so is an empty text where that is asked for."""
    if tensor.datatype == BYTES:
        texts = _texts(tensor, start, stop, where)
        if trims:
            texts = pc.ascii_trim_whitespace(texts)
        if not empty_is_null:
            return texts
        offsets = np.frombuffer(texts.buffers()[1], dtype=np.int32)[: len(texts) + 1]
        is_present = pa.py_buffer(np.packbits(np.diff(offsets) > 0, bitorder="little"))
        return pa.StringArray.from_buffers(len(texts), *texts.buffers()[1:], is_present)
    data = tensor.data[start:stop]
    if tensor.datatype == "BF16":
        data = bfloat16_to_float32(data)
    elif tensor.datatype == "FP16":
        data = data.astype(np.float32)
    return pa.array(np.require(data, requirements="A"), from_pandas=True)


def _texts(tensor: WireTensor, start: int, stop: int, where: str) -> pa.Array:
    data, num_texts = tensor.data, tensor.num_elements
    begin = find_text(data, 0, start)
    end = begin
    if begin >= 0:
        end = len(data) if stop == num_texts else find_text(data, begin, stop - start)
    if end >= 0:
        offsets = np.empty(stop - start + 1, dtype=np.int32)
        packed = np.empty(end - begin, dtype=np.uint8)
        if pack_texts(data[begin:end], offsets, packed):
            buffers = pa.py_buffer(offsets), pa.py_buffer(packed)
            texts = pa.StringArray.from_buffers(stop - start, *buffers)
            if _is_valid(texts):
                return texts
    # Reading element by element finds what is wrong, or that it is in rows that are not asked for.
    return pa.array(tensor.texts(where=where)[start:stop], pa.string())


def _is_valid(texts: pa.StringArray) -> bool:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _bags(
    values: WireTensor, lengths: WireTensor, start: int, stop: int, where: str
) -> pa.ListArray:
    """Bags start .. stop - 1, or the one that all rows share."""
    if lengths.shape[0] == 1:
        start, stop = 0, 1
    offsets: NDArray[Any] = np.concatenate([[0], np.cumsum(lengths.data, dtype=np.int64)])
    first, last = int(offsets[start]), int(offsets[stop])
    elements = _values(values, first, last, where, empty_is_null=False)
    own = (offsets[start : stop + 1] - first).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(own), elements)
