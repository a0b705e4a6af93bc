"""Random batches, made on the device that wants them.

Invariants: a batch is a function of (seed, split, index) and the same on every device but for
rounding; no batch needs another; the numbers of two splits are independent.

Shapes: B samples, N dense features, F sparse features, L ids in the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.contracts.schema import Schema
from fastdlrm.data import keys, tensor_keys
from fastdlrm.data.synthetic import IdConfig, RandomConfig
from fastdlrm.errors import ConfigError

MOST_ROWS = 2**31 - 1
_HEAD_RANKS = 4096
"""Ranks of a Zipf distribution whose shares are summed; the rest are integrated, which from here on
errs by some 1e-8 of a share."""

Uniforms = Callable[[int], Tensor]
"""So many numbers, uniform in [0, 1), on the batch's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomShape:
    """What a random batch holds.

    Attributes:
        num_dense: N.
        tables: Rows of each sparse feature's table, F of them.
        ids: How each feature's ids are drawn, F of them.
        dense: "uniform" or "normal".
        label_rate: Share of labels that are 1.
    """

    num_dense: int
    tables: tuple[int, ...]
    ids: tuple[IdConfig, ...]
    dense: str = "uniform"
    label_rate: float = 0.25

    @classmethod
    def of(cls, schema: Schema, config: RandomConfig) -> "RandomShape":
        """The shape of a schema's batches.

        Raises:
            ConfigError: A table has no number of rows, or too many; a feature is unknown, needs a
                bag, or asks for what random data lacks.
        """
        groups = {name: group for group in config.sparse for name in group.features}
        names = [feature.name for feature in schema.sparse]
        for name in groups:
            if name not in names:
                raise ConfigError(
                    f"random.sparse: no sparse feature {name!r}; one of {names} is allowed"
                )
        _require_nothing_fitted(schema)
        ids = tuple(groups.get(name, IdConfig()) for name in names)
        for feature, group in zip(schema.sparse, ids, strict=True):
            if not group.is_single and not feature.bag:
                raise ConfigError(
                    f"random.sparse: feature {feature.name!r} has bags of {group.min_ids} to "
                    f"{group.max_ids} ids; set bag = true in its group of data.sparse"
                )
        return cls(
            num_dense=len(schema.dense),
            tables=tuple(schema.table_of(feature).max_rows for feature in schema.sparse),
            ids=ids,
            dense=config.dense,
            label_rate=config.label_rate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomBatches:
    """Batches by index, without end.

    Attributes:
        shape: Of a batch.
        batch_size: B.
        seed: 0 .. 2**64 - 1.
        split: Batches of another name are independent of these.
        device: Where they are made.
    """

    shape: RandomShape
    batch_size: int
    seed: int
    split: str
    device: torch.device

    def __getitem__(self, index: int) -> Batch:
        """Batch `index`, from 0."""
        base = keys.stream(self.seed, f"random {self.split}")
        stream = keys.draws(base, index, index + 1)[0]
        drawn = 0

        def uniforms(count: int) -> Tensor:
            nonlocal drawn
            drawn += count
            return tensor_keys.uniforms(stream, drawn - count, drawn, self.device)

        return draw_batch(self.shape, self.batch_size, uniforms)


def draw_batch(shape: RandomShape, batch_size: int, uniforms: Uniforms) -> Batch:
    """A batch of random numbers.

    Drawn in this order: dense, each feature's lengths (where they vary) and ids, labels.

    Args:
        shape: What it holds.
        batch_size: B.
        uniforms: Source of all numbers; its device is the batch's.
    """
    B, N, F = batch_size, shape.num_dense, len(shape.tables)
    dense = uniforms(B * N).view(B, N)
    if shape.dense == "normal":
        dense = _normal(dense)
    lengths: list[Tensor] = []
    ids: list[Tensor] = []
    for rows, group in zip(shape.tables, shape.ids, strict=True):
        lengths.append(_lengths(group, B, uniforms, dense.device))
        total = B * group.max_ids if group.min_ids == group.max_ids else int(lengths[-1].sum())
        ids.append(draw_ids(rows, group, uniforms(total)))
    labels = uniforms(B) < shape.label_rate
    if all(group.is_single for group in shape.ids):
        batch = Batch.allocate(B, N, F, device=dense.device)
        batch.dense.copy_(dense)
        for into, drawn in zip(batch.sparse.ids.view(F, B), ids, strict=True):
            into.copy_(drawn)
        batch.labels.copy_(labels)
        return batch
    sparse = SparseBatch(
        ids=torch.cat(ids), lengths=torch.cat(lengths), weights=None, num_features=F
    )
    return Batch(dense=dense.float(), sparse=sparse, labels=labels.float())


def draw_ids(rows: int, config: IdConfig, units: Tensor) -> Tensor:
    """Ids of a table.

    Args:
        rows: Of the table, 1 .. MOST_ROWS.
        config: Their distribution.
        units: Uniform in [0, 1), shape (L,).

    Returns:
        0 .. rows - 1, shape (L,), int32.
    """
    units = units.double()
    if config.distribution == "uniform":
        place = units * rows
    elif config.distribution == "cubic":
        place = units**3 * rows
    elif config.distribution == "gaussian":
        low, high = (
            0.5 * math.erfc((config.mean - edge) / (config.std * math.sqrt(2))) for edge in (0, 1)
        )
        normal = torch.special.ndtri(low + (high - low) * units)
        place = (config.mean + config.std * normal) * rows
    else:
        place = _zipf_ranks(units, rows, config.exponent)
    return place.clamp_(0, rows - 1).int()


def _zipf_ranks(units: Tensor, rows: int, exponent: float) -> Tensor:
    """Ranks from 0 whose shares are in proportion to (rank + 1)**-exponent."""
    head = _zipf_head(min(rows, _HEAD_RANKS), exponent)
    start, stop = len(head) + 0.5, rows + 0.5
    tail = _integral(start, stop, exponent)
    place = units * (head[-1] + tail)
    cumulative = torch.from_numpy(head).to(units.device)
    ranks = torch.searchsorted(cumulative, place, right=True)
    rest = (place - head[-1]).clamp_(min=0)
    if exponent == 1:
        value = start * torch.exp(rest)
    else:
        power = start ** (1 - exponent) + (1 - exponent) * rest
        value = power.clamp_(min=0) ** (1 / (1 - exponent))
    return torch.where(ranks < len(head), ranks.double(), value.add_(0.5).floor_() - 1)


@lru_cache(maxsize=64)
def _zipf_head(num_ranks: int, exponent: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Cumulative weights of the first ranks."""
    return np.cumsum(np.arange(1, num_ranks + 1, dtype=np.float64) ** -exponent)


def _integral(start: float, stop: float, exponent: float) -> float:
    """Of x**-exponent."""
    if exponent == 1:
        return math.log(stop / start)
    return (stop ** (1 - exponent) - start ** (1 - exponent)) / (1 - exponent)


def _lengths(group: IdConfig, B: int, uniforms: Uniforms, device: torch.device) -> Tensor:
    if group.min_ids == group.max_ids:
        return torch.full((B,), group.max_ids, dtype=torch.int32, device=device)
    choices = group.max_ids - group.min_ids + 1
    return (uniforms(B).double() * choices).int().clamp_(max=choices - 1) + group.min_ids


def _normal(units: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones; half a step in, so that none is infinite."""
    return torch.special.ndtri(units.double() * (1 - 2.0**-53) + 2.0**-54)


def _require_nothing_fitted(schema: Schema) -> None:
    """Refuse what only train rows of a raw file could settle."""
    for dense in schema.dense:
        if dense.transform == "standardize":
            raise ConfigError(
                f"random data: dense feature {dense.name!r} has transform 'standardize', which is "
                "fitted on raw files; set transform 'none' or 'log1p'"
            )
    for feature in schema.sparse:
        table = schema.table_of(feature)
        if feature.key == "quantile" or feature.is_weighted:
            raise ConfigError(
                f"random data: sparse feature {feature.name!r} has key 'quantile' or weights, "
                "which are read from raw files; drop them"
            )
        has_size = table.encoding in ("identity", "hash") and 0 < table.max_rows <= MOST_ROWS
        if not has_size:
            raise ConfigError(
                f"random data: table {table.name!r} has encoding {table.encoding!r} and max_rows "
                f"{table.max_rows}; set encoding = 'identity' or 'hash' and max_rows 3 .. "
                f"{MOST_ROWS} in data.sparse: there are no values to make a vocabulary of"
            )
