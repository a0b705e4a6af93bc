"""What a training run will hold in memory and where, worked out before the first step.

Shapes: B batch, F sparse features, N dense features, D embedding dim, R rows of all tables, P
lookups a sample.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import ConfigError
from fastdlrm.model.build import undrawn_interaction
from fastdlrm.model.layout import layout_of, table_sizes
from fastdlrm.model.table_projection import build_projection
from fastdlrm.parallel import footprint
from fastdlrm.parallel.footprint import size_text
from fastdlrm.parallel.topology import free_host_bytes
from fastdlrm.train.recipe import Recipe

Place = Literal["GPU", "host"]


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
    layout = layout_of(model, schema, encoding)
    R, numbers = sum(layout.num_embeddings.values()), layout.num_numbers
    P = len(layout.feature_tables)
    N, F = len(schema.dense), len(schema.sparse)
    B = -(-train.global_batch_size // train.gradient_accumulation_steps)
    interaction = undrawn_interaction(model, schema)
    bottom, top = [N, *model.bottom_mlp][bool(not N) :], [interaction.width, *model.top_mlp, 1]
    parameters = footprint.num_parameters(bottom) + footprint.num_parameters(top)
    parameters += interaction.num_parameters
    projection = build_projection(model, schema, None)
    parameters += 0 if projection is None else projection.num_parameters
    per_parameter = footprint.parameter_bytes(train.dense_optimizer.name, train.precision)
    per_row, per_number = footprint.state_bytes(train.sparse_optimizer.name)
    tables = numbers * footprint.TABLE_BYTES[train.table_dtype]
    state = R * per_row + numbers * per_number
    if model.weighted_pooling == "learned":
        tables, state = tables + R * footprint.WEIGHT_BYTES, state + R * (per_row + per_number)
    kept = footprint.activation_numbers(bottom, top, F, D, is_gpu=is_gpu)
    kept += interaction.cost().num_kept + (2 * P * D if layout.compression else 0)
    kept += 0 if projection is None else 2 * F * D
    activations = B * kept * footprint.compute_bytes(train.precision)
    per_id, per_column = footprint.order_bytes(is_gpu=is_gpu)
    sort = int(B * P * (per_id + per_column * D))
    batch = train.global_batch_size * 4 * (F + N + 1)
    items = [
        MemoryItem("tables", of_tables, tables),
        MemoryItem("tables' optimizer", of_tables, state),
        MemoryItem("MLPs and their optimizer", compute, parameters * per_parameter),
        MemoryItem("activations", compute, activations),
        MemoryItem("order of ids and sums of rows", compute, sort),
        MemoryItem("batches", "host", footprint.BATCHES_ON_HOST * batch),
    ]
    if is_gpu:
        items.append(MemoryItem("batches", "GPU", footprint.BATCHES_ON_GPU * batch))
    return items


def require_memory(items: Sequence[MemoryItem], device: torch.device, num_sharers: int = 1) -> None:
    """Check that a plan fits what is free.

    Args:
        items: Of this process.
        device: Where it computes.
        num_sharers: Processes like it that share the host's memory.

    Raises:
        ConfigError: It does not; the message has the numbers and what to change.
    """
    on_host = free_host_bytes()
    free = {"host": None if on_host is None else on_host // num_sharers, "GPU": None}
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
                + (", train.table_placement = 'host'" if place == "GPU" else "")
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


def describe_compression(recipe: Recipe, schema: Schema, encoding: Encoding) -> list[str]:
    """What compression and narrow tables leave of all tables, in one line; none without these.

    Args:
        recipe: The run's config.
        schema: Its features.
        encoding: Sizes of the tables before compression.
    """
    layout, sizes = layout_of(recipe.model, schema, encoding), table_sizes(schema, encoding)
    held, D = layout.num_embeddings, recipe.model.embedding_dim
    if layout.num_numbers == sum(sizes.values()) * D:
        return []
    num_compressed = len(sizes.keys() - held.keys())
    num_narrow = sum(dim < D for dim in layout.dims.values())
    before, after = sum(sizes.values()) * D, layout.num_numbers
    width = footprint.TABLE_BYTES[recipe.train.table_dtype]
    rows = f"{sum(held.values()):,} rows instead of {sum(sizes.values()):,}, "
    return [
        f"compression of {num_compressed} of {len(sizes)} tables"
        + (f", {num_narrow} narrower than {D}" if num_narrow else "")
        + f": {rows if num_compressed else ''}{size_text(after * width)} instead of "
        f"{size_text(before * width)} ({after / before:.1%})"
    ]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
