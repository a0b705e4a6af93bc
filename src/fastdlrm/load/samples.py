"""What was measured of each query: arrays of equal length, and their file."""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import DataError

UNFINISHED = 0
"""Status of a query that was not answered before the run ended."""
BROKEN = -1
"""Status of a query whose connection failed."""
OK = 200


class Samples(msgspec.Struct, frozen=True):
    """Queries in order of arrival, shape (Q,) each; times in seconds from the start of the run."""

    scheduled_s: NDArray[np.float64]
    """In a closed loop, when the query could be sent."""
    sent_s: NDArray[np.float64]
    """NaN where it was not."""
    done_s: NDArray[np.float64]
    """When its answer was whole, or its failure known; NaN where there was neither."""
    status: NDArray[np.int16]
    """Of HTTP, or `UNFINISHED`, or `BROKEN`."""
    size: NDArray[np.int64]

    @property
    def is_answered(self) -> NDArray[np.bool_]:
        """Which queries got scores."""
        return self.status == OK

    def between(self, start_s: float, stop_s: float) -> "Samples":
        """The queries that were scheduled in this time."""
        low, high = np.searchsorted(self.scheduled_s, (start_s, stop_s), side="left")
        return Samples(*(getattr(self, name)[low:high] for name in self.__struct_fields__))

    @classmethod
    def join(cls, parts: "list[Samples]") -> "Samples":
        """All queries of several, in order of arrival."""
        order = np.argsort(np.concatenate([part.scheduled_s for part in parts]), kind="stable")
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])[order]
                for name in cls.__struct_fields__
            )
        )

    def write(self, path: Path) -> None:
        """Write an Arrow file of these columns."""
        table = pa.table({name: getattr(self, name) for name in self.__struct_fields__})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        write_atomic(path, sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: Path) -> "Samples":
        """Read what `write` wrote.

        Raises:
            DataError: It is no such file.
        """
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
                return cls(*(table[name].to_numpy().copy() for name in cls.__struct_fields__))
        except (pa.ArrowInvalid, KeyError) as problem:
            raise DataError(
                f"{path}: no samples of a load run ({problem}); write them with --samples"
            ) from None
