"""Requests, whole with their HTTP head, made before a run: one for each size and several windows of
rows, in a file that all sending processes map."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastdlrm.contracts.parameters import Parameters
from fastdlrm.contracts.server_info import ModelMetadata
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.contracts.wire import (
    HEADER_LENGTH,
    Infer,
    decode_error,
    decode_outcome,
    encode_infer,
    read_header_length,
)
from fastdlrm.errors import DataError, LoadError, RequestError
from fastdlrm.load.columns import Column, columns_of
from fastdlrm.load.encoded import EncodedBags
from fastdlrm.load.plan import Plan
from fastdlrm.load.sizes import Sizes
from fastdlrm.load.target import address_of, ask, model_path

MAX_VARIANTS = 16
"""Requests of one size, each of other rows."""
POOL_BYTES = 512 * 2**20
"""Of all requests; above it each size has one."""
BUSY = (503, 504)
"""Statuses of a server that has no time for a request."""


class Body(msgspec.Struct, frozen=True):
    """A request but for its HTTP head."""

    path: str
    headers: dict[str, str]
    content: bytes


class RequestMaker:
    """Makes requests of any size from example rows.

    Args:
        plan: Form, user columns and parameters.
        rows: Example rows.
        metadata: Of the model.

    Raises:
        DataError: The model takes none of the columns, or a user column is none of them.
    """

    def __init__(self, plan: Plan, rows: pa.Table, metadata: ModelMetadata) -> None:
        self._plan = plan
        self.columns, self.unused = columns_of(rows, metadata)
        self.num_rows = rows.num_rows
        self._rows = rows
        names = [column.name for column in self.columns]
        for name in plan.user_columns:
            if name not in names:
                raise DataError(f"user column {name!r} is not there; rows have {', '.join(names)}")

    def body(self, size: int, start: int) -> Body:
        """A request of `size` rows from row `start` on."""
        if self._plan.body == "rank":
            return self._rank_body(size, start)
        inputs: dict[str, WireTensor] = {}
        for column in self.columns:
            inputs |= column.tensors(start, 1 if self._is_user(column) else size)
        infer = Infer(inputs=inputs, parameters=self._parameters())
        headers, content = encode_infer(infer, binary=self._plan.body == "binary")
        return Body(f"{model_path(self._plan)}/infer", headers, content)

    def request(self, size: int, start: int) -> bytes:
        """`body` with its HTTP head."""
        body = self.body(size, start)
        address = address_of(self._plan.url)
        host = f"[{address.host}]" if ":" in address.host else address.host
        headers = {
            "host": f"{host}:{address.port}",
            "content-length": str(len(body.content)),
            **body.headers,
            **dict(self._plan.headers),
        }
        lines = [f"POST {body.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body.content

    def check(self, size: int) -> None:
        """Send one request of this size and see that its answer has a score a row.

        One that is refused for want of time shows that the server understands it.

        Raises:
            LoadError: The server refuses it, or answers something else.
        """
        body = self.body(size, 0)
        status, headers, content = ask(self._plan, "POST", body.path, body.content, body.headers)
        where = f"{self._plan.url}{body.path}"
        if status in BUSY:
            return
        if status != 200:
            raise LoadError(f"{where}: status {status} for {size} rows: {decode_error(content)}")
        if self._plan.body == "rank":
            return
        try:
            length = read_header_length(headers.get(HEADER_LENGTH))
            outputs = decode_outcome(content, length).outputs
        except RequestError as problem:
            raise LoadError(f"{where}: {problem}") from None
        wanted = {size, min(size, self._plan.top_k or size)}  # other servers know no top_k
        shapes = {name: list(tensor.shape) for name, tensor in outputs.items()}
        if not any(tensor.shape and tensor.shape[0] in wanted for tensor in outputs.values()):
            raise LoadError(f"{where}: {size} rows sent, answered outputs of shapes {shapes}")

    def _is_user(self, column: Column | EncodedBags) -> bool:
        return column.name in self._plan.user_columns

    def _parameters(self) -> Parameters:
        timeout_ms = self._plan.timeout_ms
        return Parameters(
            timeout_us=0 if timeout_ms is None else max(1, round(timeout_ms * 1000)),
            top_k=self._plan.top_k,
            binary_data_output=self._plan.body == "binary",
        )

    def _rank_body(self, size: int, start: int) -> Body:
        places = (start + np.arange(size)) % self.num_rows
        taken = self._rows.take(pa.array(places))
        user: dict[str, Any] = {}
        candidates: dict[str, list[Any]] = {}
        for column in self.columns:
            values = taken[column.name].to_pylist()
            if self._is_user(column):
                user[column.name] = values[0]
            else:
                candidates[column.name] = values
        content: dict[str, Any] = {"user": user, "candidates": candidates}
        if self._plan.top_k is not None:
            content["top_k"] = self._plan.top_k
        if self._plan.timeout_ms is not None:
            content["timeout_ms"] = self._plan.timeout_ms
        path = f"{model_path(self._plan, native=True)}:rank"
        return Body(path, {"content-type": "application/json"}, msgspec.json.encode(content))


class RequestFile:
    """Requests made so far, one after the other in a file.

    Args:
        maker: Makes what is not there yet.
    """

    def __init__(self, maker: RequestMaker) -> None:
        self._maker = maker
        folder = Path("/dev/shm")
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed by close()
            prefix="fastdlrm-load-", dir=folder if folder.is_dir() else None
        )
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._size = 0

    @property
    def path(self) -> str:
        """Of the file."""
        return self._file.name

    def places(self, sizes: Sizes, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where a request for each of these queries begins and ends, made where there was none.

        Args:
            sizes: Of the queries, shape (Q,).
            seed: Of the rows, and of which request a query gets.
        """
        random = np.random.default_rng((seed, 2))
        distinct, counts = np.unique(sizes, return_counts=True)
        for variant in range(MAX_VARIANTS):
            before = self._size
            for size, count in zip(distinct.tolist(), counts.tolist(), strict=True):
                made = self._places.setdefault(size, [])
                if len(made) <= variant < count:
                    made.append(self._make(size, int(random.integers(self._maker.num_rows))))
            if self._size + (self._size - before) > POOL_BYTES:
                break
        self._file.flush()
        places = np.empty((len(sizes), 2), np.int64)
        for size in distinct.tolist():
            of_size = np.flatnonzero(sizes == size)
            made_of = np.array(self._places[size], np.int64)
            places[of_size] = made_of[random.integers(0, len(made_of), len(of_size))]
        return places[:, 0].copy(), places[:, 1].copy()

    def _make(self, size: int, start: int) -> tuple[int, int]:
        request = self._maker.request(size, start)
        self._file.write(request)
        begin, self._size = self._size, self._size + len(request)
        return begin, self._size

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __enter__(self) -> "RequestFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
