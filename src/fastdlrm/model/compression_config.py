"""Which embedding tables are held in fewer rows, and how: [model.compression] of a preset."""

from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError

Operation = Literal["add", "mult", "concat"]
MAX_ROWS = 2**31 - 1
"""Of a hashed table: a batch's ids may be int32."""


class NoCompression(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="none",
):
    """A row for every id."""


class HashCompression(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="hash",
):
    """An id's vector is the sum of the rows that several hash functions name.

    Source: Serra and Karatzoglou 2017, arXiv:1706.03993.
    """

    num_rows: int
    """Rows that all ids share. More: fewer collisions, more memory."""
    num_hashes: int = 2
    """Rows that are added up for an id. More: fewer ids have all of theirs in common, and more rows
    are read."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_rows <= MAX_ROWS:
            raise ConfigError(
                f"compression 'hash': num_rows is {self.num_rows}; 1 to {MAX_ROWS} are allowed"
            )
        if not 1 <= self.num_hashes <= self.num_rows:
            raise ConfigError(
                f"compression 'hash': num_hashes is {self.num_hashes}; 1 to num_rows, "
                f"{self.num_rows}, are allowed"
            )


class QuotientRemainder(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="quotient_remainder",
):
    """An id's vector is made of row id // num_collisions of one table and id % num_collisions of
    another: no two ids have both in common.

    Source: Shi et al. 2020, arXiv:1909.02107.
    """

    operation: Operation = "mult"
    """What makes one vector of two. add, mult: number by number; concat: one behind the other, of
    half the embedding dim each."""
    num_collisions: int = 4
    """Rows of the remainders' table, and ids that share a row of the quotients'. More: less memory,
    down to the square root of the ids."""

    def __post_init__(self) -> None:
        if self.num_collisions < 2:
            raise ConfigError(
                f"compression 'quotient_remainder': num_collisions is {self.num_collisions}; 2 or "
                "more are allowed"
            )


TableCompression = NoCompression | HashCompression | QuotientRemainder


class CompressionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How each table is held."""

    default: TableCompression = NoCompression()
    """Of the tables above `threshold_rows` that are not named in `tables`, where it makes them
    smaller."""
    threshold_rows: int = 200
    """Tables of so many rows, or fewer, have a row for every id unless `tables` names them."""
    tables: dict[str, TableCompression] = {}
    """By table, whatever its size."""

    def __post_init__(self) -> None:
        if self.threshold_rows < 0:
            raise ConfigError(
                f"model.compression.threshold_rows is {self.threshold_rows}; 0 or more is allowed"
            )
