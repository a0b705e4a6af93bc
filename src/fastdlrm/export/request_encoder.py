"""Requests -> batches, as `fastdlrm predict` encodes the same rows of a raw file, bit for bit.

Invariant: `Converter`, `Encoder` and `Rows` of `fastdlrm.data` define the result. Compiled code
(`fastdlrm.export.request_columns`) does what is frequent; they do the rest, and say what is wrong.

A number sent as FP32 is the float32 nearest to the log's; FP64 or text gives what the log gives. An
empty text is a missing value, but for a feature of key "string" of a model whose `missing` does not
hold it: there it is the value that it is in the log.

Shapes: n rows, N dense features, F sparse features, L ids.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema, SparseFeature
from fastdlrm.contracts.signature import DENSE, IDS, LENGTHS, WEIGHTS, InputSpec, Signature
from fastdlrm.contracts.tensors import BYTES, WireTensor
from fastdlrm.data.rows import Rows
from fastdlrm.errors import RequestError
from fastdlrm.export.request_arrow import ArrowColumns
from fastdlrm.export.request_columns import CompiledColumns
from fastdlrm.export.vocabulary_index import VocabularyIndex

MAX_PLANS = 64
"""Sets of datatypes that are kept ready; clients use few."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows of one request, to be joined with those of others.

    Attributes:
        num_rows: n.
        num_sparse: F.
        dense: Shape (n, N).
        ids: Feature-major: shape (F * n,) without bags, else (L,).
        lengths: Ids of each bag, shape (F * n,); None where the model has no bags.
        weights: Shape (L,); None where no ids of the model carry weights.
    """

    num_rows: int
    num_sparse: int
    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    lengths: NDArray[np.int32] | None = None
    weights: NDArray[np.float32] | None = None

    def batch(self) -> Batch:
        """The same rows as a batch, without a copy; labels are NaN."""
        return Batch(
            dense=torch.from_numpy(self.dense),
            sparse=SparseBatch(
                ids=torch.from_numpy(self.ids),
                lengths=None if self.lengths is None else torch.from_numpy(self.lengths),
                weights=None if self.weights is None else torch.from_numpy(self.weights),
                num_features=self.num_sparse,
            ),
            labels=torch.full((self.num_rows,), torch.nan),
        )


class RequestEncoder:
    """Encodes the requests of one model; safe to use from several threads."""

    def __init__(
        self,
        schema: Schema,
        encoding: Encoding,
        missing: Sequence[str],
        vocabularies: VocabularyIndex,
        *,
        trims: bool = False,
    ) -> None:
        """Put the parts together.

        Args:
            schema: Features and tables.
            encoding: What was fitted.
            missing: Texts that stand for a missing value.
            vocabularies: Of the tables that have one.
            trims: Whether white space around a value's text is no part of it, as in a text file.
        """
        self._trims = trims
        self._schema = schema
        self._encoding = encoding
        self._missing = tuple(missing)
        self._vocabularies = vocabularies
        self._tables = vocabularies.tables()
        self._signature = Signature(schema)
        self._names = tuple(self._signature.columns)
        self._all = self._arrow((*schema.dense, *schema.sparse))
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._has_weights = any(f.is_weighted for f in schema.sparse)
        self._limits = np.array(
            [encoding.tables[f.table].num_embeddings for f in schema.sparse], dtype=np.int64
        )

    @property
    def signature(self) -> tuple[InputSpec, ...]:
        """Every input of both forms of request."""
        return self._signature.inputs

    def num_rows(self, inputs: Mapping[str, WireTensor]) -> int:
        """Check names, datatypes and shapes of a request, and count its rows.

        Raises:
            RequestError: As `Signature.num_rows`.
        """
        return self._signature.num_rows(inputs)

    def encode(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> Encoded:
        """Encode rows start .. stop - 1 of a request.

        Args:
            inputs: What `num_rows` has let through.
            start: First row.
            stop: Row after the last, above `start`.

        Raises:
            RequestError: A value is wrong; it names the row within the request.
        """
        if self._signature.form(inputs) == "encoded":
            return self._take(inputs, start, stop)
        n, N, F = stop - start, len(self._schema.dense), len(self._schema.sparse)
        plan = self._plan(inputs)
        dense = np.empty((n, N), dtype=np.float32)
        ids = np.empty((F, n), dtype=np.int32)
        if not plan.columns.write(inputs, start, stop, dense, ids):
            return self._by_rows(self._all.encode(inputs, start, stop))
        if plan.others is None:
            return Encoded(n, F, dense, ids.reshape(-1))
        rows = plan.others.encode(inputs, start, stop)
        for at in plan.singles:
            ids[at] = rows.column(self._schema.sparse[at].name).to_numpy()
        if not plan.has_bags:
            return Encoded(n, F, dense, ids.reshape(-1))
        return self._with_bags(dense, ids, rows)

    def warm(self) -> None:
        """Encode a row for each way that columns may come, so that no request is the first one.

        Code is compiled as it is first called, which takes seconds where no cache of it can be
        read: for text, for numbers with and without a fraction, and for what is refused.
        """
        for datatype, value in ((BYTES, ""), (BYTES, "?"), ("INT64", 0), ("FP64", 0.5)):
            inputs: dict[str, WireTensor] = {}
            for name, column in self._signature.columns.items():
                of_this = datatype if datatype in column.datatypes else BYTES
                sent = value if of_this == datatype else ""
                inputs[name] = WireTensor.from_list(of_this, (1,), [sent])
                if column.is_bag and not column.is_single:
                    inputs[column.lengths] = WireTensor.from_list("INT32", (1,), [1])
            with contextlib.suppress(RequestError):
                self.encode(inputs, 0, self.num_rows(inputs))

    @staticmethod
    def join(parts: Sequence[Encoded]) -> Batch:
        """Rows of several requests to one model as one batch, in order.

        Args:
            parts: At least one; a single one is not copied. Several parts without bags make a batch
                with a buffer.
        """
        if len(parts) == 1:
            return parts[0].batch()
        if parts[0].lengths is not None:
            return Batch.concat([part.batch() for part in parts])
        F = parts[0].num_sparse
        B = sum(part.num_rows for part in parts)
        batch = Batch.allocate(B, parts[0].dense.shape[1], F)
        dense, ids = batch.dense.numpy(), batch.sparse.ids.numpy().reshape(F, B)
        start = 0
        for part in parts:
            stop = start + part.num_rows
            dense[start:stop] = part.dense
            ids[:, start:stop] = part.ids.reshape(F, part.num_rows)
            start = stop
        batch.labels.fill_(torch.nan)
        return batch

    def _plan(self, inputs: Mapping[str, WireTensor]) -> "_Plan":
        datatypes = tuple([inputs[name].datatype for name in self._names])
        plan = self._plans.get(datatypes)
        if plan is None:
            columns = CompiledColumns(
                self._schema,
                self._encoding,
                self._missing,
                self._vocabularies,
                dict(zip(self._names, datatypes, strict=True)),
                trims=self._trims,
            )
            others = self._arrow(columns.others) if columns.others else None
            plan = _Plan(columns, others, self._schema)
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[datatypes] = plan
        return plan

    def _arrow(self, features: Sequence[Any]) -> ArrowColumns:
        return ArrowColumns(
            features,
            self._schema,
            self._encoding,
            self._missing,
            self._tables,
            trims=self._trims,
        )

    def _by_rows(self, rows: pa.RecordBatch) -> Encoded:
        """What `prepare` makes of all features."""
        batch = Rows([rows], self._schema).batch(slice(0, rows.num_rows))
        sparse = batch.sparse
        return Encoded(
            rows.num_rows,
            sparse.num_features,
            batch.dense.numpy(),
            sparse.ids.numpy(),
            None if sparse.lengths is None else sparse.lengths.numpy(),
            None if sparse.weights is None else sparse.weights.numpy(),
        )

    def _with_bags(
        self, dense: NDArray[np.float32], ids: NDArray[np.int32], rows: pa.RecordBatch
    ) -> Encoded:
        """Dense features and single ids, and the bags of encoded rows."""
        lengths = np.ones(ids.shape, dtype=np.int32)
        of_features: list[NDArray[Any]] = []
        weights: list[NDArray[Any]] = []
        for at, feature in enumerate(self._schema.sparse):
            if not feature.bag:
                of_features.append(ids[at])
            else:
                bags = rows.column(feature.name)
                lengths[at] = np.diff(bags.offsets.to_numpy())
                of_features.append(bags.values.to_numpy())
            if feature.is_weighted:
                weights.append(rows.column(f"{feature.name}.weights").values.to_numpy())
            elif self._has_weights:
                weights.append(np.ones(len(of_features[-1]), dtype=np.float32))
        return Encoded(
            len(dense),
            len(ids),
            dense,
            np.concatenate(of_features, dtype=np.int32, casting="unsafe"),
            lengths.reshape(-1),
            np.concatenate(weights, dtype=np.float32) if weights else None,
        )

    def _take(self, inputs: Mapping[str, WireTensor], start: int, stop: int) -> Encoded:
        """Rows of the encoded form."""
        n, F = stop - start, len(self._schema.sparse)
        dense = np.empty((n, 0), dtype=np.float32)
        if DENSE in inputs:
            dense = np.array(_rows(inputs[DENSE], start, stop), dtype=np.float32, order="C")
            if not np.isfinite(dense).all():
                row, at = map(int, np.argwhere(~np.isfinite(dense))[0])
                raise RequestError(
                    f"row {start + row}: input 'dense': {dense[row, at]} for feature "
                    f"{self._schema.dense[at].name!r}; encoded numbers are finite, with missing "
                    "ones filled: send raw columns where they are not"
                )
        if LENGTHS in inputs:
            return self._take_bags(inputs, start, stop, dense)
        if IDS not in inputs:
            return Encoded(n, 0, dense, np.empty(0, dtype=np.int32))
        ids = _rows(inputs[IDS], start, stop).T
        is_wrong = (ids < 0) | (ids >= self._limits[:, None])
        if is_wrong.any():
            row, at = map(int, np.argwhere(is_wrong.T)[0])
            raise self._out_of_range(start + row, self._schema.sparse[at], int(ids[at, row]))
        own = np.array(ids, dtype=np.int32, order="C")
        return Encoded(n, F, dense, own.reshape(-1))

    def _take_bags(
        self,
        inputs: Mapping[str, WireTensor],
        start: int,
        stop: int,
        dense: NDArray[np.float32],
    ) -> Encoded:
        n, F = stop - start, len(self._schema.sparse)
        sizes = inputs[LENGTHS].values().astype(np.int64)
        first_ids = (np.cumsum(sizes) - sizes.reshape(-1)).reshape(sizes.shape)
        columns = np.zeros(n, dtype=np.int64) if sizes.shape[1] == 1 else np.arange(start, stop)
        lengths = sizes[:, columns].reshape(-1)
        # The places of the bags' ids: where a bag's first one is, and on from there.
        before = np.cumsum(lengths) - lengths
        places = np.repeat(first_ids[:, columns].reshape(-1) - before, lengths)
        places += np.arange(len(places))
        ids = inputs[IDS].data[places]
        is_wrong = (ids < 0) | (ids >= np.repeat(np.repeat(self._limits, n), lengths))
        if is_wrong.any():
            at = int(np.flatnonzero(is_wrong)[0])
            bag = int(np.repeat(np.arange(F * n), lengths)[at])
            feature = self._schema.sparse[bag // n]
            raise self._out_of_range(start + bag % n, feature, int(ids[at]))
        weights = None
        if WEIGHTS in inputs:
            weights = inputs[WEIGHTS].data[places]
            if not np.isfinite(weights).all():
                at = int(np.flatnonzero(~np.isfinite(weights))[0])
                bag = int(np.repeat(np.arange(F * n), lengths)[at])
                raise RequestError(
                    f"row {start + bag % n}: input 'weights': {weights[at]} for feature "
                    f"{self._schema.sparse[bag // n].name!r}; weights are finite"
                )
        return Encoded(n, F, dense, ids.astype(np.int32), lengths.astype(np.int32), weights)

    def _out_of_range(self, row: int, feature: SparseFeature, found: int) -> RequestError:
        size = self._encoding.tables[feature.table].num_embeddings
        return RequestError(
            f"row {row}: input 'ids': id {found} for feature {feature.name!r}; 0 to {size - 1} is "
            "allowed: encode with this model's vocabularies, or send raw columns"
        )


class _Plan:
    """How the features of requests of one set of datatypes are encoded."""

    def __init__(
        self, columns: CompiledColumns, others: ArrowColumns | None, schema: Schema
    ) -> None:
        self.columns = columns
        self.others = others
        names = {feature.name for feature in columns.others}
        sparse = enumerate(schema.sparse)
        self.singles = [at for at, f in sparse if f.name in names and not f.bag]
        self.has_bags = any(feature.bag for feature in columns.others)


def _rows(tensor: WireTensor, start: int, stop: int) -> NDArray[Any]:
    """Rows of a matrix, or as many copies of the one that all rows share."""
    values = tensor.values()
    if len(values) != 1:
        return values[start:stop]
    return np.broadcast_to(values, (stop - start, values.shape[1]))
