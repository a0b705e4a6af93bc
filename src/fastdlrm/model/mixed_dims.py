"""How many columns each table gets by its number of rows: the power law of mixed dimensions.

A row of a table of n_i rows, of which a sample reads f_i, is read p_i = f_i / n_i times a sample.
d_i = D (p_i / p_max)^alpha, rounded, at least 1: D (n_min / n_i)^alpha where the f_i are alike.

Source: Ginart et al. 2019, arXiv:1909.11810.

Shapes: D embedding dim, n_i rows and d_i columns of a table.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from fastdlrm.errors import ConfigError

BISECTIONS = 60
"""Of the range of alpha: it is then known to the last bit or nearly so."""


class MixedDimsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns of tables by their rows; one of alpha and budget_bytes is given."""

    alpha: float | None = None
    """0: all are embedding_dim wide. More: fewer columns for large tables; the paper has 0.3."""
    budget_bytes: int | None = None
    """Of the rows of all tables together, in train.table_dtype, compressed tables and projections
    left out: the least alpha that keeps to it."""
    round_to_power_of_two: bool = False
    """Whether each d is the nearest power of two, by its logarithm: few widths, so few stacks."""
    threshold_rows: int = 0
    """Tables of so many rows, or fewer, are embedding_dim wide."""
    ids_per_sample: dict[str, float] = {}
    """Ids of a table that a sample holds on average, of all its features together; those left out
    hold 1. More: more columns."""

    def __post_init__(self) -> None:
        if (self.alpha is None) == (self.budget_bytes is None):
            raise ConfigError(
                f"model.mixed_dims: alpha is {self.alpha}, budget_bytes is {self.budget_bytes}; "
                "set one of the two"
            )
        if self.alpha is not None and not 0 <= self.alpha < math.inf:
            raise ConfigError(f"model.mixed_dims.alpha is {self.alpha:g}; 0 or more is allowed")
        if self.threshold_rows < 0:
            raise ConfigError(
                f"model.mixed_dims.threshold_rows is {self.threshold_rows}; 0 or more is allowed"
            )
        for table, count in self.ids_per_sample.items():
            if not 0 < count < math.inf:
                raise ConfigError(
                    f"model.mixed_dims.ids_per_sample.{table} is {count:g}; above 0 is allowed"
                )


class Solution(NamedTuple):
    """What came out.

    Attributes:
        alpha: As it was given, or found.
        dims: d_i by table.
        num_bytes: Of all rows.
    """

    alpha: float
    dims: dict[str, int]
    num_bytes: int


def solve(
    config: MixedDimsConfig,
    num_embeddings: Mapping[str, int],
    embedding_dim: int,
    bytes_per_number: int,
) -> Solution:
    """Work out the columns of each table.

    Args:
        config: The law.
        num_embeddings: n_i by table, each at least 1.
        embedding_dim: D.
        bytes_per_number: Of a row.

    Raises:
        ConfigError: A table in ids_per_sample is none of these, or no alpha keeps to the budget.
    """
    if unknown := sorted(config.ids_per_sample.keys() - num_embeddings.keys()):
        raise ConfigError(
            f"model.mixed_dims.ids_per_sample.{unknown[0]}: no such table among "
            f"{', '.join(num_embeddings) or 'none'}"
        )
    shares = _shares(config, num_embeddings)

    def at(alpha: float) -> Solution:
        dims = {
            table: _dim(embedding_dim, share, alpha, config.round_to_power_of_two)
            for table, share in shares.items()
        }
        numbers = sum(rows * dims[table] for table, rows in num_embeddings.items())
        return Solution(alpha, dims, numbers * bytes_per_number)

    if config.budget_bytes is None:
        return at(config.alpha or 0.0)
    return _within(config.budget_bytes, at, shares, embedding_dim)


def _shares(config: MixedDimsConfig, num_embeddings: Mapping[str, int]) -> dict[str, float]:
    """p_i / p_max by table; 1 for those that are to be D wide."""
    asked = {
        table: config.ids_per_sample.get(table, 1.0) / rows
        for table, rows in num_embeddings.items()
    }
    most = max(asked.values(), default=1.0)
    return {
        table: 1.0 if num_embeddings[table] <= config.threshold_rows else each / most
        for table, each in asked.items()
    }


def _dim(embedding_dim: int, share: float, alpha: float, is_power_of_two: bool) -> int:
    """d of a table."""
    if share == 1.0:
        return embedding_dim
    exact = max(embedding_dim * share**alpha, 1.0)
    rounded = 2 ** round(math.log2(exact)) if is_power_of_two else round(exact)
    return min(rounded, embedding_dim)


def _within(
    budget_bytes: int, at: Callable[[float], Solution], shares: Mapping[str, float], dim: int
) -> Solution:
    """The least alpha that keeps to a budget, by bisection: sizes fall as alpha grows.

    Raises:
        ConfigError: None does.
    """
    most = at(0.0)
    if most.num_bytes <= budget_bytes:
        return most
    # from here on every table that can be narrow has one column
    steepest = max((share for share in shares.values() if share < 1), default=0.5)
    low, high = 0.0, (math.log(dim) + 1) / -math.log(steepest)
    least = at(high)
    if least.num_bytes > budget_bytes:
        raise ConfigError(
            f"model.mixed_dims.budget_bytes is {budget_bytes:,}: tables of {most.num_bytes:,} "
            f"bytes can be brought down to {least.num_bytes:,}; raise it, lower threshold_rows or "
            "model.embedding_dim, or prepare with fewer rows"
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if at(middle).num_bytes <= budget_bytes:
            high = middle
        else:
            low = middle
    return at(high)
