"""Raw rows that queries are made of: from the server, from a file, or drawn."""

import http.client
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastdlrm.contracts.server_info import ModelMetadata, TensorMetadata
from fastdlrm.contracts.tensors import DATATYPES
from fastdlrm.contracts.wire import decode_error
from fastdlrm.errors import ConfigError, DataError, LoadError
from fastdlrm.load.plan import Plan
from fastdlrm.load.target import ask, model_path

NUM_RANDOM_ROWS = 4096
MAX_ROWS = 1_000_000


def read_rows(plan: Plan, metadata: ModelMetadata) -> pa.Table:
    """Read the rows a plan names.

    Args:
        plan: Its `rows` says where they are.
        metadata: Of the model; "random" draws what its inputs are.

    Returns:
        One column a raw column, at least one row.

    Raises:
        ConfigError: The file is of another kind.
        DataError: The file is damaged, or holds no rows.
        LoadError: The server has no examples, or inputs of which none can be drawn.
    """
    if plan.rows == "server":
        return _from_server(plan)
    if plan.rows == "random":
        return _drawn(metadata, plan.seed)
    path = Path(plan.rows)
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ConfigError(
            f"rows {plan.rows!r}: 'server', 'random' or a file that ends in "
            f"{', '.join(READERS)} is allowed"
        )
    try:
        table = reader(path)
    except (pa.ArrowException, msgspec.DecodeError) as problem:
        raise DataError(f"{path}: no rows can be read ({problem})") from None
    if not table.num_rows or not table.num_columns:
        raise DataError(f"{path}: no rows; queries are made of at least one")
    return table.slice(0, MAX_ROWS).combine_chunks()


def _arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


def _json_lines(path: Path) -> pa.Table:
    rows = msgspec.json.Decoder(dict[str, object]).decode_lines(path.read_bytes())
    return pa.Table.from_pylist(rows)


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".arrow": _arrow,
    ".parquet": pq.read_table,
    ".jsonl": _json_lines,
}


class _Answer(msgspec.Struct, frozen=True):
    examples: list[dict[str, object]]


def _from_server(plan: Plan) -> pa.Table:
    path = model_path(plan, native=True)
    status, _, body = ask(plan, "GET", path)
    advice = "name a file by rows, such as warmup.arrow of the exported model, or 'random'"
    if status != http.client.OK:
        raise LoadError(
            f"{plan.url}{path}: the server gives no example rows (status {status}, "
            f"{decode_error(body)[:200]}); {advice}"
        )
    try:
        rows = msgspec.json.decode(body, type=_Answer).examples
        table = pa.Table.from_pylist(rows)
    except (msgspec.DecodeError, pa.ArrowException) as problem:
        raise LoadError(f"{plan.url}{path}: no example rows ({problem}); {advice}") from None
    if not table.num_rows or not table.num_columns:
        raise LoadError(f"{plan.url}{path}: the server has no example rows; {advice}")
    return table


def _drawn(metadata: ModelMetadata, seed: int) -> pa.Table:
    random = np.random.default_rng((seed, 3))
    return pa.table({entry.name: _draw(entry, random) for entry in metadata.inputs})


def _draw(entry: TensorMetadata, random: np.random.Generator) -> pa.Array:
    """Numbers from 0 to 1, integers 0 and 1, texts "0" and "1", a list where a row has several."""
    known = DATATYPES.get(entry.datatype)
    width = int(np.prod([size for size in entry.shape[1:] if size >= 0], initial=1))
    if known is None:
        raise LoadError(
            f"input {entry.name!r}: datatype {entry.datatype!r} cannot be drawn; "
            "name a file by rows"
        )
    count = NUM_RANDOM_ROWS * width
    if known.kind == "float":
        values = pa.array(random.random(count, np.float32))
    else:
        whole = random.integers(0, 2, count)
        values = pa.array(whole.astype(str) if known.kind == "text" else whole)
    return values if width == 1 else pa.FixedSizeListArray.from_arrays(values, width)
