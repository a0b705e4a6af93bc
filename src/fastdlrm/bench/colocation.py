"""What copies of a model are asked for: which run at once, on which batches, and whether they fit.

Shapes: B batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastdlrm.batch import Batch
from fastdlrm.bench.fingerprint import caches
from fastdlrm.bench.models import NUM_BATCHES, BenchModel, require_memory
from fastdlrm.errors import ConfigError

MAX_BATCHES = 256
"""Of a copy: more would take longer to draw than to compute."""

PROCESS_BYTES = {"cpu": 300 * 2**20, "cuda": 600 * 2**20}
"""Of a copy's process besides tables and batches, on its device: what libraries take."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be measured.

    Attributes:
        copies: How many at once, ascending, each at least 1.
        batch_size: B.
        tables: "private": each copy has its own; "shared": all map the same.
        sla_ms: Of p99; None: what each model's preset says.
        partner: A model that copies are paired with, half and half, where their number is even.
    """

    copies: tuple[int, ...]
    batch_size: int = 32
    tables: tuple[str, ...] = ("private", "shared")
    sla_ms: float | None = None
    partner: BenchModel | None = None

    def sla_of(self, model: BenchModel) -> float | None:
        """Of p99; None where none is stated."""
        return model.recipe.sla_ms if self.sla_ms is None else self.sla_ms


class Case(NamedTuple):
    """Copies that run at once.

    Attributes:
        tables: "private" or "shared".
        copies: How many.
        members: Places of the copies by model.
    """

    tables: str
    copies: int
    members: dict[str, tuple[int, ...]]

    @property
    def places(self) -> list[int]:
        """Of all copies."""
        return [place for places in self.members.values() for place in places]


class Inputs(NamedTuple):
    """Batches of a copy.

    Attributes:
        num_batches: That take turns.
        num_bytes: Of all.
        touched_bytes: Of rows that they read, one read twice counted twice.
    """

    num_batches: int
    num_bytes: int
    touched_bytes: int

    @classmethod
    def of(cls, model: BenchModel, batch_size: int, cache_bytes: int | None) -> "Inputs":
        """As many as read twice what the last cache holds, or what the tables do.

        Args:
            model: Whose batches.
            batch_size: B.
            cache_bytes: Of the last cache; None where that is not known.
        """
        (batch,) = model.batches(batch_size, 1)
        touched = len(batch.sparse.ids) * model.row_bytes
        wanted = min(2 * (cache_bytes or 0), model.table_bytes)
        count = min(max(math.ceil(wanted / touched) if touched else 0, NUM_BATCHES), MAX_BATCHES)
        return cls(count, count * _num_bytes(batch), count * touched)


def _num_bytes(batch: Batch) -> int:
    tensors = batch.dense, batch.labels, batch.sparse.ids, batch.sparse.lengths
    return sum(each.nbytes for each in tensors if each is not None)


def last_cache_bytes(device: torch.device) -> int | None:
    """Of a core's, or of a GPU; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max((cache.size_bytes for cache in caches()), default=None)


def num_copies(asked: Asked) -> tuple[int, int]:
    """Processes of the model and of its partner."""
    even = [n for n in asked.copies if n % 2 == 0] if asked.partner else []
    return max(asked.copies), max(even, default=0)


def require_possible(model: BenchModel, asked: Asked) -> None:
    """Refuse what cannot be measured.

    Raises:
        ConfigError: The tables cannot be shared, or the pair is none.
    """
    if "shared" in asked.tables and model.device.type != "cpu":
        raise ConfigError(
            "--tables: processes that share a GPU have tables of their own; private is allowed, or "
            "--device cpu"
        )
    for each in (model, asked.partner):
        if "shared" in asked.tables and each is not None and not each.table_bytes:
            raise ConfigError(f"--tables: {each.name} has none to share; private is allowed")
    if asked.partner is None:
        return
    if asked.partner.name == model.name:
        raise ConfigError(f"--with {model.name}: the model itself; name another preset")
    if not num_copies(asked)[1]:
        raise ConfigError(
            f"--with {asked.partner.name}: half of the copies are of each model, --copies are "
            f"{', '.join(map(str, asked.copies))}; name an even number of them"
        )


def require_room(
    models: Sequence[BenchModel], asked: Asked, inputs: Mapping[str, Inputs], free: int | None
) -> None:
    """Refuse copies that do not fit into memory, all at once.

    Args:
        models: One, or two.
        asked: How many copies.
        inputs: By model.
        free: Bytes of the device's memory; None where that is not known.

    Raises:
        ConfigError: They do not fit; it names the scale of the tables that does.
    """
    if free is None:
        return
    model, counts = models[0], num_copies(asked)
    num_processes = sum(counts)
    besides = num_processes * PROCESS_BYTES[model.device.type] + sum(
        count * inputs[each.name].num_bytes for each, count in zip(models, counts, strict=False)
    )
    if besides >= free:
        raise ConfigError(
            f"{num_processes} processes take {besides / 2**30:.2f} GiB besides tables, "
            f"{free / 2**30:.2f} GiB of memory are free; give fewer --copies"
        )
    needed = sum(
        each.table_bytes
        * ((count if "private" in asked.tables else 0) + ("shared" in asked.tables))
        for each, count in zip(models, counts, strict=False)
    )
    copies = "a copy" if num_processes == 1 else f"{num_processes} copies"
    sets = [copies] if "private" in asked.tables else []
    sets += ["one shared set"] if "shared" in asked.tables else []
    what = f"tables of {' and '.join(sets)} (besides {besides / 2**30:.2f} GiB of the processes)"
    require_memory(needed, free - besides, model.rows_scale, what)


def cases_of(model: BenchModel, asked: Asked) -> list[Case]:
    """What is measured: each number of copies, then each even number of the partner's and of both.

    Copies of `model` are the first, those of the partner follow; in a pair they take the even and
    the odd ones of each, so that each has the core of its place.
    """
    cases = []
    for tables in asked.tables:
        cases += [Case(tables, n, {model.name: tuple(range(n))}) for n in asked.copies]
        if asked.partner is None:
            continue
        name, first = asked.partner.name, max(asked.copies)
        for n in asked.copies:
            if n % 2 == 0:
                others = tuple(range(first, first + n))
                pair = {model.name: tuple(range(0, n, 2)), name: others[1::2]}
                cases += [Case(tables, n, {name: others}), Case(tables, n, pair)]
    return cases
