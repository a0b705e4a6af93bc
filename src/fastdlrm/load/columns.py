"""Columns of example rows, laid out so that any window of them is a tensor in a few copies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.contracts.server_info import ModelMetadata, TensorMetadata
from fastdlrm.contracts.tensors import BYTES, DATATYPES, WireTensor, float32_to_bfloat16
from fastdlrm.errors import DataError
from fastdlrm.load.encoded import ENCODED, EncodedBags, is_bags
from fastdlrm.load.windows import window

LENGTHS = ".lengths"


class Elements:
    """Values one after the other, of which ranges are taken: numbers, or texts and lengths."""

    def __init__(self, values: pa.Array, datatype: str, where: str) -> None:
        self.datatype = datatype
        self.data: NDArray[Any]
        self._stops: NDArray[np.int64] | None = None
        if datatype == BYTES:
            texts = _texts(values)
            self.data = WireTensor.from_texts(texts).data
            sizes = [4 + len(text.encode()) for text in texts]
            self._stops = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        else:
            self.data = _numbers(values, datatype, where)

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> NDArray[Any]:
        """Data of these ranges of elements, one after the other."""
        stops = self._stops
        if stops is not None:
            ranges = [(int(stops[start]), int(stops[stop])) for start, stop in ranges]
        if len(ranges) == 1:
            return self.data[ranges[0][0] : ranges[0][1]]
        return np.concatenate([self.data[start:stop] for start, stop in ranges])


class Column:
    """One raw column.

    Args:
        name: Of it.
        values: Numbers, texts, or lists of either; null where missing.
        wanted: What the model's metadata says of it; None where it says nothing.

    Raises:
        DataError: Its type cannot be sent.
    """

    def __init__(self, name: str, values: pa.Array, wanted: TensorMetadata | None) -> None:
        self.name = name
        where = f"column {name!r}"
        kind = values.type
        self.num_rows = len(values)
        self._width = 0  # of a row, where all have the same number of values
        self._stops: NDArray[np.int64] | None = None  # of the rows of bags
        shape = wanted.shape if wanted else (-1,)
        if pa.types.is_fixed_size_list(kind):
            self._width = kind.list_size
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
            if len(shape) > 1 and len(lengths) and (lengths == lengths[0]).all():
                self._width = int(lengths[0])
            else:
                self._stops = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
                self.lengths = lengths.astype(np.int64)
        flat = values if self.is_plain else pc.list_flatten(values)
        self._is_wide = len(shape) > 1
        self.elements = Elements(flat, _datatype(flat, wanted), where)

    @property
    def is_plain(self) -> bool:
        """Whether a row is one value."""
        return not self._width and self._stops is None

    @property
    def is_bag(self) -> bool:
        """Whether a row is any number of values."""
        return self._stops is not None

    def tensors(self, start: int, count: int) -> dict[str, WireTensor]:
        """The tensors of `count` rows from `start` on, the last followed by the first."""
        windows = window(start, count, self.num_rows)
        if self._stops is not None:
            stops = self._stops
            data = self.elements.ranges([(int(stops[a]), int(stops[b])) for a, b in windows])
            lengths = np.concatenate([self.lengths[a:b] for a, b in windows])
            tensor = WireTensor(self.elements.datatype, (int(lengths.sum()),), data)
            return {self.name: tensor, self.name + LENGTHS: WireTensor.from_array(lengths)}
        width = self._width or 1
        data = self.elements.ranges([(a * width, b * width) for a, b in windows])
        shape = (count, width) if self._is_wide or self._width else (count,)
        return {self.name: WireTensor(self.elements.datatype, shape, data)}


def columns_of(
    rows: pa.Table, metadata: ModelMetadata
) -> tuple[list[Column | EncodedBags], list[str]]:
    """The columns that the model takes, and the names of those that it does not.

    Raises:
        DataError: It takes none of them, or one cannot be sent.
    """
    inputs = {entry.name: entry for entry in metadata.inputs}
    if inputs.keys().isdisjoint(rows.column_names) and set(rows.column_names) <= ENCODED.keys():
        inputs = ENCODED
    known = [name for name in rows.column_names if name in inputs or not inputs]
    others = [name for name in rows.column_names if name not in known]
    if not known:
        raise DataError(
            f"rows have the columns {', '.join(rows.column_names[:20])}, but model "
            f"{metadata.name!r} takes {', '.join(list(inputs)[:20])}; name rows of its log"
        )
    columns: list[Column | EncodedBags] = []
    for name in known:
        values = rows[name].combine_chunks()
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if is_bags(values.type):
            columns.append(EncodedBags(name, values))
        else:
            columns.append(Column(name, values, inputs.get(name)))
    return columns, others


def _datatype(values: pa.Array, wanted: TensorMetadata | None) -> str:
    """What the metadata says where the values can be of it, else text or the values' own type."""
    if wanted is not None and wanted.datatype in DATATYPES:
        known = DATATYPES[wanted.datatype]
        if known.kind == "text" or (known.kind == "float" and _is_number(values)):
            return known.name
        if known.kind in ("int", "bool") and not values.null_count and _is_whole(values):
            return known.name
    kind = values.type
    if pa.types.is_boolean(kind) and not values.null_count:
        return "BOOL"
    if pa.types.is_integer(kind) and not values.null_count:
        return "INT64"
    return "FP64" if pa.types.is_floating(kind) else BYTES


def _is_number(values: pa.Array) -> bool:
    try:
        pc.cast(values, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _is_whole(values: pa.Array) -> bool:
    try:
        pc.cast(values, pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _texts(values: pa.Array) -> list[str]:
    """Values as text, empty where missing."""
    kind = values.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [(value or b"").decode("utf-8", "replace") for value in values.to_pylist()]
    if pa.types.is_boolean(kind):
        return ["" if value is None else str(value).lower() for value in values.to_pylist()]
    return ["" if value is None else str(value) for value in values.to_pylist()]


def _numbers(values: pa.Array, datatype: str, where: str) -> NDArray[Any]:
    known = DATATYPES[datatype]
    try:
        if known.kind == "float":
            wide = pc.fill_null(pc.cast(values, pa.float64()), float("nan"))
            if datatype == "BF16":
                return float32_to_bfloat16(wide.to_numpy(zero_copy_only=False).astype(np.float32))
        elif known.kind == "bool":
            wide = pc.cast(pc.cast(values, pa.int64()), pa.bool_())
        else:
            wide = pc.cast(values, pa.from_numpy_dtype(known.dtype))
    except pa.ArrowException as problem:
        raise DataError(f"{where}: cannot be sent as {datatype} ({problem})") from None
    return np.ascontiguousarray(wide.to_numpy(zero_copy_only=False).astype(known.dtype))
