"""What one raw column holds: its kind, its statistics, how it goes with the label."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.data.values import int_ids, numbers, texts, time_type, times, without_nan

Kind = Literal["integer", "number", "hex", "text", "time", "bag", "empty", "unreadable"]
"""What all present values are: whole numbers, numbers, hexadecimal ids of one length, anything
else, dates, lists, nothing at all, or a type that has no place in a dataset."""

NUM_TOP = 5
SEPARATORS = ("|", ";", ",")

_NUMERIC = ("integer", "number")
_HEX = r"^[0-9a-fA-F]{8,16}$"
_WHOLE = r"^[+-]?[0-9]+$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_BAG_SHARE = 0.2
"""Least share of values that hold a separator, for them to be bags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStatistics:
    """A raw column, over the sample.

    Attributes:
        name: Of the column.
        kind: What its values are.
        proposal: What the proposed config makes of it.
        missing_share: Share of rows without a value.
        num_distinct: Different values; of a bag, different ids.
        minimum: Smallest number; None where there are none. So `maximum`, `mean`.
        top: The most frequent values, as text, with their numbers of rows; empty for a number.
    """

    name: str
    kind: Kind
    proposal: str
    missing_share: float
    num_distinct: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    top: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """A raw column of the sample, looked into.

    Attributes:
        name: Of the column.
        kind: What its values are.
        raw: One value a row as it was read, null where missing.
        values: The same; numbers for "integer" and "number", lists for "bag".
        elements: Values of all rows; of a bag, the ids of all bags; none of them null.
        element_kind: What the ids of a bag are.
        separator: Between the ids of a bag of text.
        numeric_share: Share of the values that are numbers.
    """

    name: str
    kind: Kind
    raw: pa.Array
    values: pa.Array
    elements: pa.Array
    element_kind: Kind = "empty"
    separator: str = ""
    numeric_share: float = 0.0

    @property
    def text(self) -> pa.StringArray:
        """The raw values as the label is compared, null where missing."""
        return texts(self.raw)[0]

    @property
    def num_distinct(self) -> int:
        """Different values; of a bag, different ids."""
        return 0 if self.kind == "unreadable" else int(pc.count_distinct(self.elements).as_py())

    @property
    def missing_share(self) -> float:
        """Share of rows without a value."""
        return self.values.null_count / len(self.values)

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers."""
        return self.kind in _NUMERIC

    @property
    def skewness(self) -> float:
        """Third standardised moment; 0 for a constant column."""
        x = self.elements.to_numpy(zero_copy_only=False).astype(np.float64)
        deviation = x.std()
        return float((((x - x.mean()) / deviation) ** 3).mean()) if deviation > 0 else 0.0

    @property
    def is_unique(self) -> bool:
        """Whether no two rows share a value and none lacks one."""
        return self.kind != "bag" and self.num_distinct == len(self.values)

    @property
    def is_counter(self) -> bool:
        """Whether each row's value is the one before plus 1."""
        if self.kind != "integer" or self.values.null_count:
            return False
        return bool((np.diff(self.values.to_numpy()) == 1).all())

    def gives_away(self, labels: NDArray[np.bool_]) -> bool:
        """Whether the value, a bound on it, or its absence tells the label of every row.

        Only values that many rows share count: that of a single row tells nothing about others.
        """
        if self.kind in ("bag", "unreadable"):
            return False
        is_missing = self.values.is_null().to_numpy(zero_copy_only=False)
        if np.array_equal(is_missing, labels) or np.array_equal(~is_missing, labels):
            return True
        if self.is_numeric:
            x = self.values.to_numpy(zero_copy_only=False)
            low, high = x[labels & ~is_missing], x[~labels & ~is_missing]
            if len(low) and len(high) and (low.max() < high.min() or high.max() < low.min()):
                return True
        codes = self.values.dictionary_encode().indices.fill_null(-1).to_numpy() + 1
        num_rows = np.bincount(codes)
        num_positives = np.bincount(codes, weights=labels)
        is_pure = (num_positives == 0) | (num_positives == num_rows)
        return bool(is_pure.all() and np.count_nonzero(num_rows) <= len(labels) / 10)

    def statistics(self, proposal: str) -> ColumnStatistics:
        """The statistics, with what is proposed."""
        low = high = mean = None
        top: tuple[tuple[str, int], ...] = ()
        if self.is_numeric and len(self.elements):
            low, high = map(float, pc.min_max(self.elements).as_py().values())
            mean = float(pc.mean(self.elements).as_py())
        elif self.kind in ("hex", "text", "bag"):
            counts = pc.value_counts(self.elements)
            order = pc.array_sort_indices(counts.field("counts"), order="descending")
            first = counts.take(order[:NUM_TOP]).to_pylist()
            top = tuple((str(one["values"]), one["counts"]) for one in first)
        return ColumnStatistics(
            name=self.name,
            kind=self.kind,
            proposal=proposal,
            missing_share=self.missing_share,
            num_distinct=self.num_distinct,
            minimum=low,
            maximum=high,
            mean=mean,
            top=top,
        )


def profile(name: str, values: pa.Array, delimiter: str) -> Profile:
    """Look into a column.

    Args:
        name: Of the column.
        values: One a row, null where missing.
        delimiter: Of the file, which cannot separate ids.
    """
    values = without_nan(values)
    present = values.drop_null()
    if pa.types.is_list(values.type):
        return _bag(name, values, values, "")
    if not len(present):
        return Profile(name, "empty", values, values, present)
    if pa.types.is_nested(values.type):
        return Profile(name, "unreadable", values, values, present)
    if separator := _separator(present, delimiter):
        return _bag(name, values, pc.split_pattern(values, separator), separator)
    kind, numeric_share = _kind(present)
    typed = values
    if kind in _NUMERIC:
        typed, _ = int_ids(values) if kind == "integer" else numbers(values)
    return Profile(name, kind, values, typed, typed.drop_null(), numeric_share=numeric_share)


def _bag(name: str, raw: pa.Array, lists: pa.ListArray, separator: str) -> Profile:
    elements = lists.flatten().drop_null()
    if pa.types.is_string(elements.type):
        elements = pc.ascii_trim_whitespace(elements)
        elements = elements.filter(pc.not_equal(elements, ""))
    if pa.types.is_nested(elements.type):
        return Profile(name, "unreadable", raw, lists, elements)
    kind, _ = _kind(elements) if len(elements) else ("empty", 0.0)
    return Profile(name, "bag", raw, lists, elements, element_kind=kind, separator=separator)


def _kind(present: pa.Array) -> tuple[Kind, float]:
    """The kind of values of a plain type, at least one and none null; and the share of numbers."""
    types = pa.types
    if types.is_timestamp(present.type) or types.is_date(present.type):
        return "time", 0.0
    if types.is_binary(present.type) or types.is_temporal(present.type):
        return "text", 0.0
    if types.is_boolean(present.type):
        return "integer", 1.0
    if not types.is_string(present.type):
        return _number_kind(present), 1.0
    numeric_share = pc.mean(pc.match_substring_regex(present, _NUMBER)).as_py()
    if numeric_share == 1:
        return _number_kind(present), 1.0
    lengths = pc.min_max(pc.utf8_length(present)).as_py()
    if lengths["min"] == lengths["max"] and pc.all(pc.match_substring_regex(present, _HEX)).as_py():
        return "hex", numeric_share
    first = time_type(present[:1])
    if isinstance(first, pa.TimestampType) and not times(present, first)[1]:
        return "time", numeric_share
    return "text", numeric_share


def _number_kind(present: pa.Array) -> Kind:
    """Of values that all look like numbers."""
    is_whole = (
        not pa.types.is_string(present.type)
        or pc.all(pc.match_substring_regex(present, _WHOLE)).as_py()
    )
    if is_whole and not int_ids(present)[1]:
        return "integer"
    return "text" if numbers(present)[1] else "number"


def _separator(present: pa.Array, delimiter: str) -> str:
    """What separates the ids of a bag of text; empty where the values are no bags."""
    if not pa.types.is_string(present.type):
        return ""
    num_distinct = pc.count_distinct(present).as_py()
    for separator in SEPARATORS:
        share = pc.mean(pc.match_substring(present, separator)).as_py()
        if separator != delimiter and share >= _BAG_SHARE:
            ids = pc.split_pattern(present, separator).flatten()
            if pc.count_distinct(ids).as_py() < num_distinct:
                return separator
    return ""
