"""How the vectors of one table are made of rows of smaller ones.

An id becomes an id of each *part* that it is looked up in; the parts' vectors are joined; the
gradient of the joined vector becomes the parts' gradients.

Shapes: n ids or bags, D embedding dim.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fastdlrm.contracts.hashing import mix
from fastdlrm.model.compression_config import Operation
from fastdlrm.model.embedding import Draw

_SIGN = 1 << 63


class Join(Protocol):
    """How vectors of parts become one."""

    @property
    def is_linear(self) -> bool:
        """Whether pooled vectors can be joined in the place of those of each id."""
        ...

    def __call__(self, vectors: Sequence[Tensor]) -> Tensor:
        """Make one of the parts' vectors, shape (n, D) each."""
        ...

    def backward(self, grad: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the parts' vectors, of that of what they were joined to, shape (n, D)."""
        ...


class Sum:
    """All parts added."""

    is_linear = True

    def __call__(self, vectors: Sequence[Tensor]) -> Tensor:
        """Add, in order."""
        first, *others = vectors
        for other in others:
            first = first + other
        return first

    def backward(self, grad: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The gradient, once for each part."""
        return [grad] * len(vectors)


class Product:
    """Two parts multiplied, number by number."""

    is_linear = False

    def __call__(self, vectors: Sequence[Tensor]) -> Tensor:
        """Multiply."""
        first, second = vectors
        return first * second

    def backward(self, grad: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The gradient times the other part's vector."""
        first, second = vectors
        return [grad * second, grad * first]


class Halves:
    """Two parts side by side, of each its first half: tables in memory have no more."""

    is_linear = True

    def __call__(self, vectors: Sequence[Tensor]) -> Tensor:
        """Put the second behind the first."""
        first, second = vectors
        half = first.shape[-1] // 2
        return torch.cat([first[..., :half], second[..., :half]], -1)

    def backward(self, grad: Tensor, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The gradient, and its second half in front."""
        return [grad, grad.roll(grad.shape[-1] // 2, -1)]


@dataclass(frozen=True, slots=True)
class Composition:
    """A table, as what lies in memory for it.

    Attributes:
        num_embeddings: Rows by table in memory, in order.
        parts: The table in memory of each part; one may serve several.
        ids: Ids of each part, of those of the table, shape (n,), int32 or int64.
        join: What becomes of the parts' vectors.
        draws: How tables in memory are drawn, so that joined vectors begin as those of a table with
            a row for every id; one that is not in it is drawn by its own rows.
        num_pieces: Tables in memory have D / num_pieces columns.
    """

    num_embeddings: Mapping[str, int]
    parts: tuple[str, ...]
    ids: Callable[[Tensor], list[Tensor]]
    join: Join
    draws: Mapping[str, Draw]
    num_pieces: int = 1


def plain(table: str, num_ids: int) -> Composition:
    """A row for every id."""
    return Composition({table: num_ids}, (table,), _same, Sum(), {})


def hashed(table: str, num_ids: int, num_rows: int, num_hashes: int) -> Composition:
    """The sum of the rows that several hash functions name, all in one table."""
    held = f"{table}.hash"
    return Composition(
        {held: num_rows},
        (held,) * num_hashes,
        partial(_hashed, num_hashes, num_rows),
        Sum(),
        {held: Draw(num_ids, num_summed=num_hashes)},
    )


def quotient_remainder(
    table: str, num_ids: int, num_collisions: int, operation: Operation
) -> Composition:
    """The row of an id's quotient and that of its remainder, joined.

    Of a product the remainders begin as signs: it is then distributed as a number of a plain table,
    those of different ids are uncorrelated, and a quotient's row gets gradients as large as a plain
    table's. Numbers above 0 alone, as the reference draws them, would make all vectors alike.
    """
    quotients, remainders = parts = f"{table}.quotient", f"{table}.remainder"
    rows = {quotients: -(-num_ids // num_collisions), remainders: num_collisions}
    join: Join = Sum()
    draws = dict.fromkeys(parts, Draw(num_ids, num_summed=2))
    if operation == "mult":
        join = Product()
        draws = {quotients: Draw(num_ids), remainders: Draw(num_ids, are_signs=True)}
    elif operation == "concat":
        join, draws = Halves(), dict.fromkeys(parts, Draw(num_ids))
    num_pieces = 2 if operation == "concat" else 1
    return Composition(rows, parts, partial(_divided, num_collisions), join, draws, num_pieces)


def hashed_rows(ids: Tensor, function: int, num_rows: int) -> Tensor:
    """Row of each id under one of a family of 64-bit hash functions.

    With `mix` of `fastdlrm.contracts.hashing` it is (mix(id ^ mix(function + 1)) >> 1) % num_rows:
    one bit less, so that signed integers do.

    Args:
        ids: Shape (n,), int64, none negative.
        function: Which, from 0 on.
        num_rows: At least 1.

    Returns:
        Shape (n,), int64, below `num_rows`.
    """
    key = ids ^ _signed(mix(function + 1))
    key = (key ^ _shifted(key, 30)) * _signed(0xBF58476D1CE4E5B9)
    key = (key ^ _shifted(key, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(key ^ _shifted(key, 31), 1) % num_rows


def _same(ids: Tensor) -> list[Tensor]:
    return [ids]


def _hashed(num_hashes: int, num_rows: int, ids: Tensor) -> list[Tensor]:
    wide = ids.long()
    return [hashed_rows(wide, function, num_rows).to(ids.dtype) for function in range(num_hashes)]


def _divided(num_collisions: int, ids: Tensor) -> list[Tensor]:
    """Quotients and remainders, by division of integers."""
    quotients = torch.div(ids, num_collisions, rounding_mode="floor")
    return [quotients, ids - quotients * num_collisions]


def _shifted(keys: Tensor, count: int) -> Tensor:
    """Bits moved right, zeros moved in."""
    return (keys >> count) & ((1 << (64 - count)) - 1)


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    return number - 2 * _SIGN if number >= _SIGN else number
