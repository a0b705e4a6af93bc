"""Raw rows -> batches by the code that `prepare` and `predict` run on files.

Requests take another way, `fastdlrm.export.request_encoder`; golden rows hold the two together.
"""

from collections.abc import Sequence

import pyarrow as pa

from fastdlrm.batch import Batch
from fastdlrm.contracts.schema import Schema
from fastdlrm.data.convert import Converter
from fastdlrm.data.encode import Encoder
from fastdlrm.data.rows import Rows
from fastdlrm.errors import DataError


class OfflineEncoder:
    """Encodes raw rows as `predict` does.

    Args:
        schema: Features.
        missing: Texts that stand for a missing value.
        encoder: Holds what was fitted.
    """

    def __init__(self, schema: Schema, missing: Sequence[str], encoder: Encoder) -> None:
        self._schema = schema
        self._encoder = encoder
        self._converter = Converter("rows", schema, missing, labelled=False, time_column="")

    def batch(self, rows: pa.RecordBatch) -> Batch:
        """Raw rows as a batch.

        Args:
            rows: The raw columns, as a log has them; others are left alone.

        Raises:
            DataError: A column is missing, or a value is wrong.
        """
        wanted = self._converter.columns
        absent = [name for name in wanted if name not in rows.schema.names]
        if absent:
            raise DataError(f"column {absent[0]!r} is missing; the model needs {', '.join(wanted)}")
        staged, flaws = self._converter.convert(rows)
        if flaws:
            row, what = min(flaws.items())
            raise DataError(f"row {row}: {what}; correct the row")
        return self.staged(staged).batch(slice(0, rows.num_rows))

    def staged(self, staged: pa.RecordBatch) -> Rows:
        """Rows that were typed already, as `fastdlrm.data.convert.Converter` types them.

        Raises:
            DataError: A value is wrong.
        """
        return Rows([self._encoder.encode(staged)], self._schema)
