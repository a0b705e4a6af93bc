"""What a prediction request must look like: names, datatypes and shapes of its inputs.

A request has one of two forms, told apart by its inputs' names:

columns   one tensor a raw column, named as in the raw log, shape (N,), (N, 1), or (1,) for a value
          that all N rows share. Text as the log has it, or numbers; an empty text, a text that
          the model knows as missing, and NaN are missing values. A bag is a text with the
          log's separator, or its values, shape (L,), with `{column}.lengths`, shape (N,) or (1,).
encoded   `dense` (N, Nd) and `ids` (N, F) as `prepare` writes them, first dimension 1 where all
          rows share it. With bags: `ids` (L,) feature-major, `lengths` (F, N) or (F, 1) and, where
          ids carry weights, `weights` (L,).

The label's column is left alone: who replays a log may send it. Nothing here looks at values other
than lengths, so that a process without vocabularies can refuse most wrong requests.

Shapes: N rows, Nd dense features, F sparse features, L ids.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.schema import CALENDAR_KEYS, Schema
from fastdlrm.contracts.tensors import BYTES, DATATYPES, WireTensor, place, shape_text
from fastdlrm.errors import RequestError

Form = Literal["columns", "encoded"]

DENSE, IDS, LENGTHS, WEIGHTS = "dense", "ids", "lengths", "weights"
"""Inputs of the encoded form."""
ANY = tuple(DATATYPES)
INTEGERS = ("INT32", "INT64")


class InputSpec(NamedTuple):
    """An input of one form of request."""

    form: Form
    name: str
    datatype: str
    """The one to prefer."""
    shape: tuple[int, ...]
    """-1 where any size is allowed."""
    datatypes: tuple[str, ...]
    """All that are allowed."""
    is_optional: bool = False
    """Whether a request may lack it."""


class Column(NamedTuple):
    """A raw column as an input."""

    name: str
    datatypes: frozenset[str]
    """Of a value a row, or of the values of bags with lengths."""
    is_single: bool
    """Whether a feature takes one value a row of it."""
    is_bag: bool
    """Whether a feature takes a bag a row of it."""
    has_separator: bool
    """Whether its bags may come as text."""
    lengths: str
    """The input with the lengths of its bags."""
    shared_lengths: str
    """The input that says them where `lengths` is not sent: that of the ids, for weights."""

    def lengths_in(self, inputs: Mapping[str, WireTensor]) -> str:
        """The input that holds the lengths of this column's bags; empty where a row is a value."""
        if not self.is_bag:
            return ""
        if self.lengths in inputs:
            return self.lengths
        is_text = self.has_separator and inputs[self.name].datatype == BYTES
        shares = self.shared_lengths in inputs and not is_text
        return self.shared_lengths if shares else ""


class Signature:
    """The inputs that a model takes.

    Attributes:
        columns: The raw columns by name, in the order of the schema.
        inputs: Every input of both forms, for metadata.
    """

    def __init__(self, schema: Schema) -> None:
        """Take the inputs from a schema."""
        self._schema = schema
        self.columns = {column.name: column for column in _columns(schema)}
        self._is_jagged = any(feature.bag for feature in schema.sparse)
        self._singles = np.array([not feature.bag for feature in schema.sparse], dtype=np.bool_)
        encoded = _encoded(schema)
        self._encoded = {spec.name: spec for spec in encoded}
        self.inputs = (*_specs(schema, self.columns), *encoded)
        names = set(self.columns)
        names |= {column.lengths for column in self.columns.values() if column.is_bag}
        self._names = names
        self._ignored = {schema.label.column} - names

    def form(self, inputs: Mapping[str, WireTensor]) -> Form:
        """The form of a request, by the names of its inputs."""
        if IDS not in inputs and DENSE not in inputs:
            return "columns"
        given = inputs.keys() - self._ignored
        is_encoded = given <= self._encoded.keys() and not self.columns.keys() <= given
        return "encoded" if is_encoded or not given & self._names else "columns"

    def num_rows(self, inputs: Mapping[str, WireTensor]) -> int:
        """Check a request and count its rows.

        Args:
            inputs: By name.

        Returns:
            N, at least 1.

        Raises:
            RequestError: An input is missing, unknown, of a wrong datatype or shape, or lengths
                are negative or do not add up.
        """
        if self.form(inputs) == "encoded":
            return self._encoded_rows(inputs)
        return self._column_rows(inputs)

    def _column_rows(self, inputs: Mapping[str, WireTensor]) -> int:
        num_rows, decider, num_known = 1, "", 0
        for name, column in self.columns.items():
            tensor = inputs.get(name)
            if tensor is None:
                self._refuse_absent(name, inputs)
            num_known += 1
            if tensor.datatype not in column.datatypes:
                raise RequestError(_wrong_datatype(name, tensor, column.datatypes))
            shape, decides = tensor.shape, name
            if column.is_bag:
                shape, decides = self._bag_shape(column, tensor, inputs)
                num_known += column.lengths in inputs
            if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
                raise RequestError(
                    f"{place('input', decides)}: shape {shape_text(shape)}; [N] or [N, 1] is "
                    "allowed, with a value a row, or [1] for all rows"
                )
            if shape[0] != num_rows and shape[0] != 1:
                if decider or not shape[0]:
                    self._refuse_rows(decides, shape[0], decider, num_rows)
                num_rows, decider = shape[0], decides
        if num_known != len(inputs):
            self._refuse_unknown(inputs, self._names)
        return num_rows

    def _bag_shape(
        self, column: Column, tensor: WireTensor, inputs: Mapping[str, WireTensor]
    ) -> tuple[tuple[int, ...], str]:
        """The shape that has a row a bag, and the input it is of."""
        lengths = column.lengths_in(inputs)
        where = place("input", column.name)
        if not lengths:
            if not column.has_separator:
                raise RequestError(
                    f"{where}: its values are bags; send {column.lengths!r}, INT32 or INT64, "
                    "with the number of values of each row"
                )
            if tensor.datatype != BYTES:
                raise RequestError(
                    f"{where}: datatype {tensor.datatype} without {column.lengths!r}; send the "
                    "lengths of the bags, or BYTES with the log's separator"
                )
            return tensor.shape, column.name
        if column.is_single:
            raise RequestError(
                f"{where}: {lengths!r} is sent, but a feature takes one value a row of this "
                "column; send text with the log's separator, and no lengths"
            )
        if len(tensor.shape) != 1:
            raise RequestError(
                f"{where}: shape {shape_text(tensor.shape)} with {lengths!r}; [L] is allowed, "
                "the values of all bags"
            )
        _check_lengths(lengths, inputs[lengths], column.name, tensor.shape[0])
        return inputs[lengths].shape, lengths

    def _encoded_rows(self, inputs: Mapping[str, WireTensor]) -> int:
        if len(inputs) != len(self._encoded):
            self._refuse_unknown(inputs, set(self._encoded))
        for name, spec in self._encoded.items():
            if name not in inputs:
                self._refuse_absent(name, inputs)
            tensor = inputs[name]
            if tensor.datatype not in spec.datatypes:
                raise RequestError(_wrong_datatype(name, tensor, spec.datatypes))
            fits = len(tensor.shape) == len(spec.shape) and all(
                wanted in (-1, size) for size, wanted in zip(tensor.shape, spec.shape, strict=True)
            )
            if not fits:
                raise RequestError(
                    f"{place('input', name)}: shape {shape_text(tensor.shape)}; "
                    f"{list(spec.shape)} is allowed, -1 for any size"
                )
        counted = {DENSE: 0, LENGTHS: 1} if self._is_jagged else {DENSE: 0, IDS: 0}
        num_rows, decider = 1, ""
        for name, axis in counted.items():
            size = inputs[name].shape[axis] if name in inputs else 1
            if size != num_rows and size != 1:
                if decider or not size:
                    self._refuse_rows(name, size, decider, num_rows)
                num_rows, decider = size, name
        if self._is_jagged:
            self._check_encoded_bags(inputs)
        return num_rows

    def _check_encoded_bags(self, inputs: Mapping[str, WireTensor]) -> None:
        num_ids = inputs[IDS].shape[0]
        lengths = _check_lengths(LENGTHS, inputs[LENGTHS], IDS, num_ids)
        if (lengths[self._singles] != 1).any():
            at = int(np.flatnonzero(self._singles & (lengths != 1).any(axis=1))[0])
            raise RequestError(
                f"input 'lengths': row {at} is that of feature {self._schema.sparse[at].name!r}, "
                "which has one id a sample; 1 alone is allowed there (id 1 stands for missing)"
            )
        if WEIGHTS in inputs and inputs[WEIGHTS].shape[0] != num_ids:
            raise RequestError(
                f"input 'weights': {inputs[WEIGHTS].shape[0]} weights for {num_ids} ids; send one "
                "an id (1 where a feature has none)"
            )

    def _refuse_absent(self, name: str, inputs: Mapping[str, WireTensor]) -> NoReturn:
        names = self.columns if self.form(inputs) == "columns" else self._encoded
        absent = [repr(n) for n in names if n not in inputs]
        shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if absent[5:] else "")
        raise RequestError(
            f"{place('input', name)} is missing ({shown}); send every raw column of the log but "
            f"the label, or encoded {' and '.join(map(repr, self._encoded))}"
        )

    def _refuse_unknown(self, inputs: Mapping[str, WireTensor], known: set[str]) -> None:
        """Refuse the first input that is not known; one that is ignored is not refused."""
        for name in inputs:
            if name not in known and name not in self._ignored:
                raise RequestError(
                    f"{place('input', name)} is unknown; the inputs are "
                    f"{', '.join(self.columns)}, or encoded {', '.join(self._encoded)}"
                )

    def _refuse_rows(self, name: str, size: int, decider: str, num_rows: int) -> NoReturn:
        others = f"{place('input', decider)} has {num_rows}" if decider else "at least 1 is needed"
        raise RequestError(
            f"{place('input', name)} has {size} rows, {others}; send one value a row, or a "
            "single one for all rows"
        )


def _columns(schema: Schema) -> list[Column]:
    """Every raw column that a feature is made of, each once."""
    singles = [feature.column for feature in schema.dense]
    singles += [feature.column for feature in schema.sparse if not feature.bag]
    bags = [f for f in schema.sparse if f.bag]
    owner = {f.weight_column: f.column for f in reversed(bags) if f.is_weighted}
    names = dict.fromkeys([f.column for f in schema.dense])
    for feature in schema.sparse:
        names |= dict.fromkeys(n for n in (feature.column, feature.weight_column) if n)
    columns = []
    for name in names:
        of = [f for f in bags if name in (f.column, f.weight_column)]
        has_hex = any(f.column == name and f.key == "hex" for f in schema.sparse)
        columns.append(
            Column(
                name=name,
                datatypes=frozenset((BYTES,) if has_hex else ANY),
                is_single=name in singles,
                is_bag=bool(of),
                has_separator=bool(of) and all(f.separator for f in of),
                lengths=f"{name}.lengths",
                shared_lengths=f"{owner[name]}.lengths" if name in owner else "",
            )
        )
    return columns


def _specs(schema: Schema, columns: Mapping[str, Column]) -> list[InputSpec]:
    """The columns form as metadata shows it."""
    texts = {f.column for f in schema.sparse if f.key in ("hex", "string", *CALENDAR_KEYS)}
    whole = {f.column for f in schema.sparse if f.key == "int"}
    specs = []
    for name, column in columns.items():
        is_text = name in texts or (column.is_bag and column.has_separator)
        datatype = BYTES if is_text else "INT64" if name in whole else "FP64"
        allowed = tuple(n for n in ANY if n in column.datatypes)
        specs.append(InputSpec("columns", name, datatype, (-1,), allowed))
        if column.is_bag and not column.is_single:
            is_optional = column.has_separator or bool(column.shared_lengths)
            specs.append(
                InputSpec("columns", column.lengths, "INT32", (-1,), INTEGERS, is_optional)
            )
    return specs


def _encoded(schema: Schema) -> list[InputSpec]:
    """The encoded form."""
    specs = []
    N, F = len(schema.dense), len(schema.sparse)
    is_jagged = any(feature.bag for feature in schema.sparse)
    if N:
        specs.append(InputSpec("encoded", DENSE, "FP32", (-1, N), ("FP32",)))
    if F:
        shape = (-1,) if is_jagged else (-1, F)
        specs.append(InputSpec("encoded", IDS, "INT32", shape, INTEGERS))
    if is_jagged:
        specs.append(InputSpec("encoded", LENGTHS, "INT32", (F, -1), INTEGERS))
    if any(feature.is_weighted for feature in schema.sparse):
        specs.append(InputSpec("encoded", WEIGHTS, "FP32", (-1,), ("FP32",)))
    return specs


def _check_lengths(name: str, tensor: WireTensor, of: str, num_values: int) -> NDArray[Any]:
    """The lengths in their own shape, none negative, adding up to `num_values`."""
    if tensor.datatype not in INTEGERS:
        raise RequestError(_wrong_datatype(name, tensor, INTEGERS))
    lengths = tensor.data
    is_wrong = (lengths < 0) | (lengths > num_values)
    if is_wrong.any():
        found = int(lengths[np.flatnonzero(is_wrong)[0]])
        raise RequestError(
            f"{place('input', name)}: length {found}; 0 to {num_values}, the values of "
            f"{place('input', of)}, is allowed"
        )
    if (total := int(lengths.sum(dtype=np.int64))) != num_values:
        raise RequestError(
            f"{place('input', name)}: the lengths add up to {total}, but {place('input', of)} has "
            f"{num_values} values; they must be equal"
        )
    return lengths.reshape(tensor.shape)


def _wrong_datatype(
    name: str, tensor: WireTensor, allowed: frozenset[str] | tuple[str, ...]
) -> str:
    names = ", ".join(n for n in ANY if n in allowed)
    return f"{place('input', name)}: datatype {tensor.datatype}; {names} is allowed"
