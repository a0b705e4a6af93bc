"""Profiles of raw columns -> a proposed label and proposed features.

The rules, a place to begin:

- The label is a column of two values named like one (LABEL_NAMES), or of few values, the greatest
  being positive; else one that holds a yes and a no, the last or first column before others; else
  the last or first column of any two values, the rarer being positive.
- Numbers become dense features, and sparse ones too: by value ("{column}_value") up to MAX_VALUES
  whole numbers, else by train quantile ("{column}_bucket"), so that the model can treat parts of
  the range apart. Whole numbers named like an id are sparse alone.
- Text, hexadecimal ids and lists become sparse features.
- Left out are constants, row numbers, times, and columns that give the label away.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastdlrm.contracts.schema import Key, Label, Transform
from fastdlrm.data.config import DenseGroup, SparseGroup
from fastdlrm.data.profile import Kind, Profile
from fastdlrm.data.values import numbers

LABEL_NAMES = (
    *("label", "labels", "click", "clicked", "is_click", "is_clicked", "target", "y"),
    *("conversion", "converted", "purchase", "purchased", "is_purchase", "buy", "like", "liked"),
    *("response", "outcome", "rating"),
)
"""In lower case, the likeliest first."""
YES = ("1", "true", "yes", "y", "t", "click", "clicked", "positive", "pos")
NO = ("0", "-1", "false", "no", "n", "f", "negative", "neg")
TIME_NAMES = ("time", "timestamp", "ts", "date", "datetime", "event_time", "created_at")
MAX_VALUES = 50
NUM_QUANTILES = 32
RARE = 0.001
"""Share of rows of a class below which there is a warning."""
RARE_VALUE_DISTINCT = 100
"""Different values above which those seen once share a trained row with unseen ones."""

_ID_NAME = re.compile(r"(^|[^a-z])(id|ids|uuid|guid|zip|zipcode|postcode|code)$|[a-z](Id|ID)s?$")
_WEIGHT_NAME = re.compile(r"weight|score", re.IGNORECASE)
_MAX_GRADES = 20
_LEAST_ROWS = 20
"""Rows below which it says nothing that no two share a value."""
_LEAST_OF_A_CLASS = 10
"""Rows of each class below which a perfect split may be chance."""
_MOSTLY = 0.95
_KEYS: dict[Kind, Key] = {"integer": "int", "hex": "hex", "text": "string"}


@dataclass(slots=True)
class Proposal:
    """A growing proposal.

    Attributes:
        warnings: What a person should look at.
        made_of: By column: what it becomes, in words.
        dense: Columns of each transform.
        sparse: Columns of each kind of group, which is given without columns.
        time: Column that orders the rows; empty for none.
    """

    warnings: list[str] = field(default_factory=list)
    made_of: dict[str, str] = field(default_factory=dict)
    dense: dict[Transform, list[str]] = field(default_factory=dict)
    sparse: dict[SparseGroup, list[str]] = field(default_factory=dict)
    time: str = ""

    def dense_groups(self) -> tuple[DenseGroup, ...]:
        """The dense features."""
        return tuple(
            DenseGroup(columns=tuple(columns), transform=transform)
            for transform, columns in self.dense.items()
        )

    def sparse_groups(self) -> tuple[SparseGroup, ...]:
        """The sparse features."""
        return tuple(
            msgspec.structs.replace(group, columns=tuple(columns))
            for group, columns in self.sparse.items()
        )

    def leave_out(self, column: str, reason: str) -> None:
        """Make nothing of a column, and say so."""
        self.made_of[column] = f"left out: {reason}"
        self.warnings.append(f"column {column!r} is left out: {reason}")

    def add_dense(self, column: str, transform: Transform) -> None:
        """Make a dense feature."""
        self.dense.setdefault(transform, []).append(column)

    def add_sparse(self, column: str, num_distinct: int, **settings: object) -> None:
        """Make a sparse feature of a group's settings."""
        min_count = 2 if num_distinct > RARE_VALUE_DISTINCT else 1
        group = SparseGroup(columns=(), min_count=min_count, **settings)  # type: ignore[arg-type]
        self.sparse.setdefault(group, []).append(column)


def propose_label(profiles: Sequence[Profile], proposal: Proposal) -> Label | None:
    """The likeliest label; None where no column can be one."""
    plain = [p for p in profiles if p.kind in ("integer", "number", "hex", "text")]
    named = [p for p in plain if p.name.lower() in LABEL_NAMES]
    for candidate in sorted(named, key=lambda p: LABEL_NAMES.index(p.name.lower())):
        if label := _label(candidate, proposal):
            return label
    ends = (profiles[-1].name, profiles[0].name)
    two = sorted(
        (p for p in plain if p.num_distinct == 2 and not p.missing_share),
        key=lambda p: (not _is_yes_or_no(p), p.name != ends[0], p.name != ends[1]),
    )
    if not two:
        return None
    proposal.warnings.append(
        f"no column is named like a label: {two[0].name!r}, which has two values, was taken; "
        "correct data.label if it is another"
    )
    return _label(two[0], proposal)


def _is_yes_or_no(candidate: Profile) -> bool:
    found = {text.lower() for text in pc.unique(candidate.text).to_pylist()}
    return bool(found & set(YES)) and bool(found & set(NO))


def _label(candidate: Profile, proposal: Proposal) -> Label | None:
    """The label in a column; None where it has too many values."""
    found = pc.value_counts(candidate.text.drop_null()).to_pylist()
    counts = {one["values"]: one["counts"] for one in found}
    where = f"label {candidate.name!r}"
    if len(counts) > _MAX_GRADES:
        proposal.warnings.append(f"{where}: {len(counts)} values are too many for a label")
        return None
    if len(counts) == 1:
        (value,) = counts
        proposal.warnings.append(f"{where}: {value!r} in every row; nothing can be learnt from it")
        is_yes = value.lower() in YES
        return Label(
            column=candidate.name,
            positive=(value if is_yes else "1",),
            negative=("0" if is_yes else value,),
        )
    positive = _positive(counts, where, proposal)
    if candidate.missing_share:
        proposal.warnings.append(
            f"{where}: missing in {candidate.missing_share:.1%} of the rows, which are bad rows"
        )
    share = counts[positive] / sum(counts.values())
    if min(share, 1 - share) < RARE:
        proposal.warnings.append(
            f"{where}: {share:.4%} of the rows are positive; metrics will be noisy"
        )
    negative = tuple(text for text in counts if text != positive)
    return Label(column=candidate.name, positive=(positive,), negative=negative)


def _positive(counts: dict[str, int], where: str, proposal: Proposal) -> str:
    """The positive one of two or more values."""
    yes = [text for text in counts if text.lower() in YES]
    others = [text for text in counts if text.lower() not in NO]
    if len(counts) == 2:
        for certain in (yes, others):
            if len(certain) == 1:
                return certain[0]
        rarer = min(counts, key=lambda text: counts[text])
        proposal.warnings.append(f"{where}: of its two values the rarer, {rarer!r}, was taken as 1")
        return rarer
    are_numbers = not numbers(pa.array(list(counts)))[1]
    greatest = max(counts, key=lambda text: float(text) if are_numbers else -counts[text])
    proposal.warnings.append(
        f"{where}: of its {len(counts)} values {greatest!r} alone was taken as 1; correct "
        "data.label.positive and negative"
    )
    return greatest


def propose_features(
    profiles: Sequence[Profile], labels: NDArray[np.bool_] | None, proposal: Proposal
) -> None:
    """Add what every column but the label becomes.

    Args:
        profiles: Of these columns, in file order.
        labels: Of each row; None where there is no label.
        proposal: Is added to.
    """
    weights = _weights_of_bags(profiles)
    num_positives = 0 if labels is None else int(labels.sum())
    can_judge = labels is not None and _LEAST_OF_A_CLASS <= num_positives <= (
        len(labels) - _LEAST_OF_A_CLASS
    )
    for p in profiles:
        if p.name in weights.values():
            proposal.made_of[p.name] = "weights of a bag"
        elif reason := _useless(p):
            proposal.leave_out(p.name, reason)
        elif can_judge and labels is not None and p.gives_away(labels):
            proposal.leave_out(p.name, "it gives the label of every row away")
        elif p.kind == "time" or (p.is_numeric and p.name.lower() in TIME_NAMES):
            _propose_time(p, proposal)
        elif p.kind == "bag":
            _propose_bag(p, weights.get(p.name, ""), proposal)
        elif p.is_numeric and not (p.kind == "integer" and _ID_NAME.search(p.name)):
            _propose_number(p, profiles, proposal)
        else:
            proposal.add_sparse(p.name, p.num_distinct, key=_KEYS[p.kind])
            proposal.made_of[p.name] = f"sparse ({_KEYS[p.kind]})"
            if _MOSTLY <= p.numeric_share < 1:
                proposal.warnings.append(
                    f"column {p.name!r} is text, though {p.numeric_share:.1%} of its values are "
                    "numbers; if the others mean missing, add them to data.source.missing"
                )
        if _MOSTLY <= p.missing_share < 1:
            proposal.warnings.append(f"column {p.name!r}: {p.missing_share:.1%} is missing")


def _useless(p: Profile) -> str:
    """Why a column cannot be a feature; empty where it can."""
    if p.kind == "empty":
        return "all is missing"
    if p.kind == "unreadable":
        return f"values of type {p.raw.type} cannot be read"
    if p.kind == "bag" and p.num_distinct < 2:
        return "its bags hold no two ids"
    if p.kind == "bag" and p.element_kind not in _KEYS:
        return f"lists of type {p.element_kind} that weigh no other column"
    if p.num_distinct == 1 and not p.missing_share:
        return "the same value in every row"
    if len(p.values) < _LEAST_ROWS or not p.is_unique:
        return ""
    if (
        p.kind in ("text", "hex")
        or p.is_counter
        or (p.kind == "integer" and _ID_NAME.search(p.name))
    ):
        return "another value in every row, as a row number"
    return ""


def _propose_number(p: Profile, profiles: Sequence[Profile], proposal: Proposal) -> None:
    lowest = pc.min(p.elements).as_py()
    transform: Transform = "log1p" if lowest >= 0 and p.skewness > 1 else "standardize"
    proposal.add_dense(p.name, transform)
    is_value = p.kind == "integer" and p.num_distinct <= MAX_VALUES
    name = "{column}_value" if is_value else "{column}_bucket"
    proposal.made_of[p.name] = f"dense ({transform})"
    if name.replace("{column}", p.name) in (other.name for other in profiles):
        return
    if is_value:
        proposal.add_sparse(p.name, p.num_distinct, name=name, key="int")
        proposal.made_of[p.name] += ", sparse (int)"
    else:
        proposal.add_sparse(p.name, 0, name=name, key="quantile", num_quantiles=NUM_QUANTILES)
        proposal.made_of[p.name] += f", sparse ({NUM_QUANTILES} quantiles)"


def _propose_time(p: Profile, proposal: Proposal) -> None:
    if proposal.time:
        proposal.leave_out(p.name, f"a time; {proposal.time!r} already orders the rows")
    elif p.missing_share:
        proposal.leave_out(p.name, "a time that some rows lack")
    else:
        proposal.time = p.name
        proposal.made_of[p.name] = "time, orders the split"


def _propose_bag(p: Profile, weight_column: str, proposal: Proposal) -> None:
    key = _KEYS[p.element_kind]
    proposal.add_sparse(
        p.name,
        p.num_distinct,
        key=key,
        bag=True,
        separator=p.separator,
        weight_column=weight_column,
    )
    proposal.made_of[p.name] = f"sparse bag ({key})"


def _weights_of_bags(profiles: Sequence[Profile]) -> dict[str, str]:
    """By bag column: the column of its weights, numbers of the same lengths."""
    bags = [p for p in profiles if p.kind == "bag"]
    lengths = {p.name: pc.list_value_length(p.values).fill_null(0) for p in bags}
    found: dict[str, str] = {}
    for weight in bags:
        if not _may_be_weights(weight):
            continue
        for bag in bags:
            is_free = not _may_be_weights(bag) and bag.name not in found
            if is_free and lengths[bag.name].equals(lengths[weight.name]):
                found[bag.name] = weight.name
                break
    return found


def _may_be_weights(bag: Profile) -> bool:
    return bag.element_kind == "number" or (
        bag.element_kind == "integer" and _WEIGHT_NAME.search(bag.name) is not None
    )
