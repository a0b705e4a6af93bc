"""What a training run will hold in memory and where, worked out before the first step.

Shapes: B batch, F sparse features, N dense features, D embedding dim, R rows of all tables, L ids
in the batch.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import ConfigError
from fastdlrm.model.build import interaction_width
from fastdlrm.train.recipe import Recipe

Place = Literal["GPU", "host"]

TABLE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STATE_NUMBERS = {"sgd": 0, "adagrad": 1, "adam": 2, "adamw": 2}
"""Numbers an optimizer keeps a parameter, rowwise_adagrad apart."""
ORDER_BYTES = 48
"""An id: its row, sorted row, position, chunk, and what the sort works in."""
PART_BYTES_PER_ID = 4 * 2 / 64
"""A number of D: partial sums of long runs, two slots of float32 for every 64 ids."""
BATCHES_ON_GPU = 3
"""The one computed on and two on their way."""
BATCHES_ON_HOST = 4
"""Gathered ahead of the one computed on."""


class MemoryItem(NamedTuple):
    """A part of what a run holds.

    Attributes:
        name: What it is.
        place: Where it lies.
        num_bytes: Its size; of activations the most at one time.
    """

    name: str
    place: Place
    num_bytes: int


def memory_plan(
    recipe: Recipe, schema: Schema, encoding: Encoding, device: torch.device
) -> list[MemoryItem]:
    """Work out what a run holds, evaluation and the runtime's own memory left out.

    Args:
        recipe: The run's config.
        schema: Its features; a bag counts as one id, so with bags this is the least.
        encoding: Sizes of its tables.
        device: Where it computes.
    """
    train, model = recipe.train, recipe.model
    is_gpu = device.type == "cuda"
    compute: Place = "GPU" if is_gpu else "host"
    of_tables: Place = "host" if train.table_placement == "host" else compute
    D = model.embedding_dim
    R = sum(encoding.tables[table.name].num_embeddings for table in schema.tables)
    N, F = len(schema.dense), len(schema.sparse)
    B = -(-train.global_batch_size // train.gradient_accumulation_steps)
    joined = interaction_width(model, F + bool(N), has_dense=N > 0)
    bottom, top = [N, *model.bottom_mlp][bool(not N) :], [joined, *model.top_mlp, 1]
    num_parameters = sum((k + 1) * n for widths in (bottom, top) for k, n in pairwise(widths))
    compute_bytes = 2 if train.precision == "bf16" else 4
    kept = sum(bottom) + sum(top)
    passing = 2 * max((a + b for a, b in pairwise(top)), default=0)
    pooled = F * D * (1 if is_gpu else 3)
    sort = F * (ORDER_BYTES + PART_BYTES_PER_ID * D) if is_gpu else F * (ORDER_BYTES + 4 * D)
    copies = 4 + 4 + (compute_bytes if compute_bytes < 4 else 0)
    state = STATE_NUMBERS[train.dense_optimizer.name]
    batch = train.global_batch_size * 4 * (F + N + 1)
    items = [
        MemoryItem("tables", of_tables, R * D * TABLE_BYTES[train.table_dtype]),
        MemoryItem("tables' optimizer", of_tables, _table_state(recipe, R)),
        MemoryItem("MLPs and their optimizer", compute, num_parameters * (copies + 4 * state)),
        MemoryItem("activations", compute, B * (kept + passing + pooled) * compute_bytes),
        MemoryItem("order of ids and sums of rows", compute, int(B * sort)),
        MemoryItem("batches", "host", BATCHES_ON_HOST * batch),
    ]
    if is_gpu:
        items.append(MemoryItem("batches", "GPU", BATCHES_ON_GPU * batch))
    if train.checkpoint_in_background:
        copied = sum(item.num_bytes for item in items[:3])
        items.append(MemoryItem("copy for a checkpoint", "host", copied))
    return items


def require_memory(items: Sequence[MemoryItem], device: torch.device) -> None:
    """Check that a plan fits what is free.

    Raises:
        ConfigError: It does not; the message has the numbers and what to change.
    """
    free = {"host": _free_host_bytes(), "GPU": None}
    if device.type == "cuda":
        free["GPU"] = torch.cuda.mem_get_info(device)[0]
    for place, available in free.items():
        needed = sum(item.num_bytes for item in items if item.place == place)
        if available is not None and needed > available:
            parts = ", ".join(f"{i.name} {_gib(i.num_bytes)}" for i in items if i.place == place)
            raise ConfigError(
                f"train: {_gib(needed)} of memory on the {place} are needed ({parts}), "
                f"{_gib(available)} are free; lower model.embedding_dim or prepare with fewer rows "
                "(max_rows, min_count), set train.table_dtype = 'bf16'"
                + (
                    ", train.table_placement = 'host'"
                    if place == "GPU"
                    else ", train.checkpoint_in_background = false"
                )
                + " or a smaller train.global_batch_size"
            )


def describe(items: Sequence[MemoryItem]) -> str:
    """The plan in one line a place."""
    lines = []
    for place in ("GPU", "host"):
        here = [item for item in items if item.place == place]
        if here:
            parts = ", ".join(f"{item.name} {_gib(item.num_bytes)}" for item in here)
            total = _gib(sum(item.num_bytes for item in here))
            lines.append(f"memory on the {place}: {total} ({parts})")
    return "\n".join(lines)


def _table_state(recipe: Recipe, num_rows: int) -> int:
    """Bytes of the tables' optimizer."""
    name = recipe.train.sparse_optimizer.name
    if name == "rowwise_adagrad":
        return 4 * num_rows
    return 4 * STATE_NUMBERS[name] * num_rows * recipe.model.embedding_dim


def _free_host_bytes() -> int | None:
    """What the system says is available; None where it does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
