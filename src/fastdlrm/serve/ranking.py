"""Bodies of the native routes: `POST /v1/models/{model}:rank` and `:score`, raw values in JSON.

A column's values become one tensor of the columns form of a request:

* strings: BYTES, null = missing (empty text);
* integers: INT64; where one is missing, BYTES of their decimal text, which is exact;
* numbers with a fraction among them: FP64, null = missing (NaN);
* true and false: BOOL; where one is missing, BYTES "true" and "false", as in a log of text;
* lists (bags): the elements of all rows, and `{column}.lengths`; null = an empty bag.

A column holds values of one of these kinds. The user's values have a first dimension of 1, which
stands for every candidate.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, NamedTuple

import msgspec

from fastdlrm.contracts.parameters import MAX_TIMEOUT_US, Parameters
from fastdlrm.contracts.tensors import BYTES, WireTensor, quoted
from fastdlrm.contracts.wire import Infer, Outcome
from fastdlrm.contracts.wire_json import decode_json
from fastdlrm.errors import RequestError

Rows = list[dict[str, Any]] | dict[str, Any]
"""One object a row, or one array a column."""
Milliseconds = Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_US / 1000)]


class RankBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of :rank."""

    candidates: Rows
    """What is ranked: the columns that differ between them."""
    user: dict[str, Any] = {}
    """Value of each column that all candidates share."""
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Answer the best ones alone; None = all."""
    timeout_ms: Milliseconds | None = None
    """Time the answer may take."""
    priority: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    """1 is the highest; 0 = the server's default."""
    echo: bool = False
    """Answer each candidate's own values beside its score."""
    id: str = ""
    """The client's own; comes back with the answer."""


class ScoreBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of :score."""

    rows: Rows
    timeout_ms: Milliseconds | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    id: str = ""


class RankedItem(msgspec.Struct, omit_defaults=True):
    """One candidate of a ranking."""

    index: int
    """Its place in the request."""
    score: float
    candidate: dict[str, Any] | None = None
    """Its values, where `echo` asks for them."""


class RankAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answer of :rank."""

    model_name: str
    model_version: str
    id: str = ""
    ranking: list[RankedItem]
    """Best first; equal scores by index."""


class ScoreAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answer of :score."""

    model_name: str
    model_version: str
    id: str = ""
    scores: list[float]
    """Probability of each row, in the rows' order."""


class RankQuery(NamedTuple):
    """A decoded :rank."""

    infer: Infer
    """Asks for `item_index` and `score` of the best candidates."""
    columns: dict[str, Sequence[Any]]
    """Values of the candidates, one sequence a column."""
    echo: bool

    def encode(self, outcome: Outcome) -> bytes:
        """The answer's body, of the outputs `item_index` (k,) and `score` (k,)."""
        indices = outcome.outputs["item_index"].data.tolist()
        scores = outcome.outputs["score"].data.tolist()
        ranking = [
            RankedItem(index, score, self._candidate(index) if self.echo else None)
            for index, score in zip(indices, scores, strict=True)
        ]
        answer = RankAnswer(
            model_name=outcome.model_name,
            model_version=outcome.model_version,
            id=outcome.id,
            ranking=ranking,
        )
        return msgspec.json.encode(answer)

    def _candidate(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}


RANK_DECODER = msgspec.json.Decoder(RankBody)
SCORE_DECODER = msgspec.json.Decoder(ScoreBody)


def decode_rank(
    body: bytes | memoryview, *, model_name: str = "", model_version: str = ""
) -> RankQuery:
    """Decode the body of :rank.

    Raises:
        RequestError: It is not as `RankBody` says, a row lacks a column, or a column mixes kinds.
    """
    decoded = decode_json(body, RANK_DECODER, "request body")
    columns, num_rows = columns_of(decoded.candidates, "candidates", "candidate")
    inputs: dict[str, WireTensor] = {}
    for column, value in decoded.user.items():
        if column in columns:
            raise RequestError(
                f"column {quoted(column)}: both the user and the candidates have it; "
                "send it in one of them"
            )
        add_column(inputs, column, (value,), "user")
    for column, values in columns.items():
        add_column(inputs, column, values, "candidates")
    top_k = num_rows if decoded.top_k is None else min(decoded.top_k, num_rows)
    infer = Infer(
        inputs=inputs,
        model_name=model_name,
        model_version=model_version,
        id=decoded.id,
        parameters=parameters_of(decoded, top_k),
    )
    return RankQuery(infer, columns, decoded.echo)


def decode_score(
    body: bytes | memoryview, *, model_name: str = "", model_version: str = ""
) -> Infer:
    """Decode the body of :score.

    Raises:
        RequestError: It is not as `ScoreBody` says, a row lacks a column, or a column mixes kinds.
    """
    decoded = decode_json(body, SCORE_DECODER, "request body")
    columns, _ = columns_of(decoded.rows, "rows", "row")
    inputs: dict[str, WireTensor] = {}
    for column, values in columns.items():
        add_column(inputs, column, values, "rows")
    return Infer(
        inputs=inputs,
        model_name=model_name,
        model_version=model_version,
        id=decoded.id,
        parameters=parameters_of(decoded, None),
    )


def encode_score(outcome: Outcome) -> bytes:
    """The answer's body of :score, of the output `score` (N,)."""
    answer = ScoreAnswer(
        model_name=outcome.model_name,
        model_version=outcome.model_version,
        id=outcome.id,
        scores=outcome.outputs["score"].data.tolist(),
    )
    return msgspec.json.encode(answer)


def parameters_of(body: RankBody | ScoreBody, top_k: int | None) -> Parameters:
    """A request's parameters as the protocol has them."""
    timeout_us = 0 if body.timeout_ms is None else max(1, round(body.timeout_ms * 1000))
    return Parameters(timeout_us=timeout_us, priority=body.priority, top_k=top_k)


def columns_of(rows: Rows, where: str, what: str) -> tuple[dict[str, Sequence[Any]], int]:
    """Values by column, and the number of rows; RequestError where rows do not fit together."""
    if isinstance(rows, dict):
        return checked_columns(rows, where)
    if not rows:
        raise RequestError(f"{where}: there are none; send at least one")
    first = rows[0]
    names = first.keys()
    if not names:
        raise RequestError(f"{where}: {what} 0 has no columns; send at least one")
    for index, row in enumerate(rows):
        if row.keys() != names:
            missing, extra = names - row.keys(), row.keys() - names
            found = f"lacks {shown(missing)}" if missing else f"has {shown(extra)} besides"
            raise RequestError(
                f"{where}: {what} {index} {found}, compared to {what} 0; send the same columns in "
                "each, null where a value is missing"
            )
    return {name: [row[name] for row in rows] for name in first}, len(rows)


def checked_columns(columns: Mapping[str, Any], where: str) -> tuple[dict[str, Sequence[Any]], int]:
    """Columns that came as columns, all of one length."""
    num_rows = -1
    for name, values in columns.items():
        if type(values) is not list:
            raise RequestError(
                f"{where}: column {quoted(name)} is {quoted(values)}; send an array, a value a row"
            )
        if num_rows not in (-1, len(values)):
            raise RequestError(
                f"{where}: column {quoted(name)} has {len(values)} values, the others have "
                f"{num_rows}; send one value a row in each"
            )
        num_rows = len(values)
    if num_rows < 1:
        raise RequestError(f"{where}: there are none; send at least one")
    return dict(columns), num_rows


def add_column(
    inputs: dict[str, WireTensor], column: str, values: Sequence[Any], where: str
) -> None:
    """Add a column's tensor, or its two of a bag; RequestError where its values are of no kind."""
    place = f"{where}: column {quoted(column)}"
    kinds = set(map(type, values))
    is_bag = list in kinds
    lengths_name = f"{column}.lengths"
    if column in inputs or (is_bag and lengths_name in inputs):
        raise RequestError(f"{place}: its name, or its lengths', is that of another column")
    if not is_bag:
        inputs[column] = plain_tensor(values, kinds, place)
        return
    if kinds - {list, type(None)}:
        raise RequestError(f"{place}: holds lists and plain values; send lists, or null for none")
    elements = list(chain.from_iterable(value for value in values if value is not None))
    kinds = set(map(type, elements))
    if type(None) in kinds:
        raise RequestError(f"{place}: null within a list; leave it out")
    inputs[column] = plain_tensor(elements, kinds, place)
    lengths = [0 if value is None else len(value) for value in values]
    inputs[lengths_name] = WireTensor.from_list("INT64", (len(lengths),), lengths)


def plain_tensor(values: Sequence[Any], kinds: set[type], where: str) -> WireTensor:
    """The tensor of plain values of these types; RequestError where they are of no one kind."""
    has_missing = type(None) in kinds
    present = kinds - {type(None)}
    if present <= {str}:
        datatype = BYTES
    elif present == {bool}:
        datatype = BYTES if has_missing else "BOOL"
        if has_missing:
            values = [None if value is None else str(value).lower() for value in values]
    elif present == {int}:
        datatype = BYTES if has_missing else "INT64"
        if has_missing:
            values = [None if value is None else str(value) for value in values]
    elif present <= {int, float}:
        datatype = "FP64"
    else:
        words = ", ".join(sorted(KIND_NAMES[kind] for kind in present))
        raise RequestError(
            f"{where}: holds {words}; send strings, numbers, true and false, or lists of these, "
            "of one kind in a column"
        )
    return WireTensor.from_list(datatype, (len(values),), values, where=where)


KIND_NAMES: dict[type, str] = {
    str: "strings",
    int: "numbers",
    float: "numbers with a fraction",
    bool: "true or false",
    dict: "objects",
    list: "lists within lists",
}


def shown(names: set[str]) -> str:
    """Column names for a message: the first few."""
    some = sorted(names)[:3]
    more = f" and {len(names) - len(some)} more" if len(names) > len(some) else ""
    return ", ".join(map(quoted, some)) + more
