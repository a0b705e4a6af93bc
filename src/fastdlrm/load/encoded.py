"""Rows as `prepare` encodes them, which fastdlrm's server takes beside raw columns.

A file of them has the columns `dense`, N numbers a row, and `ids`, F ids or F bags of ids a row.

Shapes: n rows, N dense features, F sparse features.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.contracts.server_info import TensorMetadata
from fastdlrm.contracts.signature import DENSE, IDS, LENGTHS
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.load.windows import window

ENCODED = {
    DENSE: TensorMetadata(name=DENSE, datatype="FP32", shape=(-1, -1)),
    IDS: TensorMetadata(name=IDS, datatype="INT32", shape=(-1, -1)),
}
"""Inputs that a server's metadata does not name: there it has the raw columns."""


def is_bags(kind: pa.DataType) -> bool:
    """Whether a column of this type has F bags a row."""
    if not pa.types.is_fixed_size_list(kind):
        return False
    inner = kind.value_type
    return pa.types.is_list(inner) or pa.types.is_large_list(inner)


class EncodedBags:
    """A column of F bags a row.

    Args:
        name: Of the ids; their lengths go as `LENGTHS`.
        values: Fixed-size lists of F lists of whole numbers, n of them.
    """

    def __init__(self, name: str, values: pa.Array) -> None:
        self.name = name
        self.num_rows, F = len(values), values.type.list_size
        bags = pc.list_flatten(values)
        order = np.arange(len(bags)).reshape(self.num_rows, F).T.reshape(-1)
        bags = bags.take(pa.array(order))
        lengths = pc.fill_null(pc.list_value_length(bags), 0).to_numpy(zero_copy_only=False)
        self._lengths: NDArray[np.int32] = lengths.astype(np.int32).reshape(F, self.num_rows)
        self._stops = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._ids: NDArray[Any] = pc.list_flatten(bags).to_numpy(zero_copy_only=False)

    def tensors(self, start: int, count: int) -> dict[str, WireTensor]:
        """The two tensors of `count` rows from `start` on, the last followed by the first."""
        windows = window(start, count, self.num_rows)
        stops = self._stops
        firsts = range(0, self._lengths.size, self.num_rows)
        ids = [self._ids[stops[f + a] : stops[f + b]] for f in firsts for a, b in windows]
        lengths = np.concatenate([self._lengths[:, a:b] for a, b in windows], axis=1)
        return {
            self.name: WireTensor.from_array(np.concatenate(ids)),
            LENGTHS: WireTensor.from_array(lengths),
        }
