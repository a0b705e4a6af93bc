"""What a machine can do: memory in order, rows at random places, products of matrices, copies to
and from a GPU, all-to-all; every sample kept.

A call that is short is made many times a sample, on a GPU as one CUDA graph: how fast calls can be
started is no property of memory or arithmetic.

Shapes: B batch, L ids in the batch, F sparse features, M x K x N of a product of matrices.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import msgspec
import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.bench.counting import ID_BYTES, Product
from fastdlrm.bench.fingerprint import caches
from fastdlrm.bench.measure import Timed, measure
from fastdlrm.bench.models import NUM_BATCHES, BenchModel, free_bytes
from fastdlrm.bench.placement import PRODUCTS
from fastdlrm.bench.result import measurement
from fastdlrm.contracts.bench_result import Effort, Measurement
from fastdlrm.data.random import RandomBatches
from fastdlrm.data.synthetic import IdConfig
from fastdlrm.kernels.lookup import pooled_lookup
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.int8_mlp import Int8Layers, Range, has_int8_products
from fastdlrm.model.int8_predictor import MIN_WEIGHTS
from fastdlrm.parallel.measure import (
    COPY_BYTES,
    EXCHANGED_BYTES,
    GEMM_WIDTH,
    IDS_PER_BAG,
    NUM_ROWS,
    copying,
    exchange_times_ns,
    products_as,
)
from fastdlrm.parallel.world import World

PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16")}
"""Of products. On a CPU tf32 is fp32."""

CACHED_BYTES = (2**20, 2**23, 2**26)
"""Copied within caches, read plus written."""
MEMORY = "memory"
"""Names streams of more than a cache holds."""
HOST_BYTES = 2**26
"""Copied to a GPU and back."""
MEMORY_SHARE = 8
"""An array takes at most this part of the free memory."""
MIN_SAMPLE_MS = 1.0
"""Calls that are shorter are made several times a sample."""
EFFORT_SHARE = 0.2
"""Of a step's time of measuring, for a ceiling: there are many of them."""


@dataclass(frozen=True, slots=True)
class Load:
    """Something a machine is asked to do, for its speed.

    Attributes:
        ceiling: What it finds.
        of: With what.
        call: Takes k, and may choose its input by it.
        flop: Of a call.
        num_bytes: Of a call.
    """

    ceiling: str
    of: str
    call: Callable[[int], object]
    flop: float = 0.0
    num_bytes: float = 0.0


def measure_streams(device: torch.device, effort: Effort) -> list[Measurement]:
    """Copy and triad (a = b + s c) of more than a cache holds; copies of what caches hold.

    Args:
        device: Whose memory.
        effort: Of a step's measurement.
    """
    size = array_bytes(last_cache_bytes(device), free_bytes(device), device)
    a, b, c = (torch.zeros(size // 4, device=device) for _ in range(3))
    loads = [
        Load("copy", MEMORY, lambda _: a.copy_(b), num_bytes=2 * size),
        Load("triad", MEMORY, lambda _: torch.add(b, c, alpha=3.0, out=a), num_bytes=3 * size),
    ]
    for num_bytes in CACHED_BYTES:
        call = _without_k(copying(num_bytes, device))
        loads.append(Load("copy", f"{num_bytes >> 20} MiB", call, num_bytes=num_bytes))
    return measured(loads, device, effort)


def measure_gather(model: BenchModel, tables: EmbeddingTables, effort: Effort) -> list[Measurement]:
    """Rows of a model's own tables at random places, uniform over each table.

    They are summed by 20, so that next to nothing is written, or copied one by one; bytes are those
    of rows and ids alone. Different rows take turns, more than a cache holds where the tables are.

    Args:
        model: Says how many ids each feature has.
        tables: Of the model.
        effort: Of a step's measurement.

    Returns:
        Nothing of a model without tables.
    """
    if not model.shape.tables:
        return []
    weight = tables.weight.detach()
    drawn = [tables.rows(sparse) for sparse in _uniform_ids(model)]
    offsets = [_bags_of(rows) for rows in drawn]
    num_bytes = sum(map(len, drawn)) / len(drawn) * (weight[0].nbytes + ID_BYTES)
    copied = weight.new_empty(max(map(len, drawn)), weight.shape[1])

    def pool(k: int) -> Tensor:
        at = k % len(drawn)
        return pooled_lookup(weight, drawn[at], offsets[at])

    def copy(k: int) -> Tensor:
        rows = drawn[k % len(drawn)]
        return torch.index_select(weight, 0, rows, out=copied[: len(rows)])

    loads = [Load("gather", "summed", pool, num_bytes=num_bytes)]
    loads.append(Load("gather", "copied", copy, num_bytes=num_bytes))
    return measured(loads, model.device, effort)


def measure_products(
    products: Iterable[Product], device: torch.device, effort: Effort
) -> list[Measurement]:
    """Products of large matrices and of a model's layers, by type.

    Args:
        products: Of the layers; one that comes twice is measured once.
        device: That multiplies.
        effort: Of a step's measurement.
    """
    width = GEMM_WIDTH[device.type]
    large = Product("forward", width, width, width)
    chosen = [("large", large), *((product.kind, product) for product in dict.fromkeys(products))]
    found = []
    for precision in PRECISIONS[device.type]:
        with products_as(precision, device) as dtype:
            loads = [
                Load(
                    PRODUCTS + precision,
                    product_name(kind, product),
                    _without_k(multiplying(product, dtype, device)),
                    flop=product.flop,
                )
                for kind, product in chosen
            ]
            found += measured(loads, device, effort)
    if device.type == "cpu" and has_int8_products():
        found += measured(list(_int8_loads(chosen)), device, effort)
    return found


def measure_host_copies(device: torch.device, effort: Effort) -> list[Measurement]:
    """Page-locked memory to a GPU and back.

    Args:
        device: A GPU.
        effort: Of a step's measurement.
    """
    here = torch.zeros(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.zeros(HOST_BYTES, dtype=torch.uint8, device=device)

    def up(_: int) -> Tensor:
        return there.copy_(here, non_blocking=True)

    def down(_: int) -> Tensor:
        return here.copy_(there, non_blocking=True)

    of = f"{HOST_BYTES >> 20} MiB"
    loads = [Load("host to device", of, up, num_bytes=HOST_BYTES)]
    loads.append(Load("device to host", of, down, num_bytes=HOST_BYTES))
    return measured(loads, device, effort)


def measure_exchange(world: World, device: torch.device) -> list[Measurement]:
    """All-to-all between ranks, which then part; every rank must call it, and gets its own times.

    Args:
        world: Not entered yet.
        device: Of this rank.

    Returns:
        Nothing of a world of one rank.
    """
    if world.size == 1:
        return []
    num_bytes, threads = EXCHANGED_BYTES[device.type], torch.get_num_threads()
    with world:
        times = exchange_times_ns(world, device, num_bytes)
    torch.set_num_threads(threads)  # the ranks shared the cores
    timed = Timed((tuple(time / 1e6 for time in times),), "samples")
    key = {"ceiling": "all-to-all", "of": f"{num_bytes >> 20} MiB, {world.size} ranks"}
    sent = num_bytes * (world.size - 1) / world.size
    return [msgspec.structs.replace(measurement(key, timed), num_bytes=sent)]


def measured(loads: Sequence[Load], device: torch.device, effort: Effort) -> list[Measurement]:
    """Samples of each load, milliseconds a call.

    Args:
        loads: Take turns.
        device: Awaited before each stamp.
        effort: Of a step's measurement; a ceiling has a fifth of it.
    """
    shorter = msgspec.structs.replace(
        effort,
        warmup_s=EFFORT_SHARE * effort.warmup_s,
        seconds=EFFORT_SHARE * effort.seconds,
        min_samples=min(effort.min_samples, 20),
    )
    many = [_many(load.call, device) for load in loads]
    times = measure([call for call, _ in many], device, shorter)
    found = []
    for load, (_, count), timed in zip(loads, many, times, strict=True):
        rounds = tuple(tuple(ms / count for ms in samples) for samples in timed.rounds)
        one = measurement({"ceiling": load.ceiling, "of": load.of}, Timed(rounds, timed.stopped))
        found.append(
            msgspec.structs.replace(one, flop=load.flop or None, num_bytes=load.num_bytes or None)
        )
    return found


def multiplying(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """A product of random matrices that lie as they do in a linear layer."""
    kind, m, k, n = product
    drawn = partial(torch.randn, device=device)
    left = drawn(k, m).t() if kind == "weight gradient" else drawn(m, k)
    right = drawn(n, k).t() if kind == "forward" else drawn(k, n)
    out = torch.empty(m, n, dtype=dtype, device=device)
    return partial(torch.mm, left.to(dtype), right.to(dtype), out=out)


def product_name(kind: str, product: Product) -> str:
    """Of a product's measurement."""
    return f"{kind} {product.m} x {product.k} x {product.n}"


def last_cache_bytes(device: torch.device) -> int:
    """Of the last cache before a device's memory; 0 where it is not told."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return max((cache.size_bytes for cache in caches()), default=0)


def array_bytes(cache_bytes: int, free: int | None, device: torch.device) -> int:
    """Of each array that is streamed: twice the last cache, as far as memory allows.

    Args:
        cache_bytes: Of the last cache.
        free: Memory; None where that is not known.
        device: Whose memory.
    """
    wanted = max(2 * cache_bytes, COPY_BYTES[device.type] // 2)
    fits = wanted if free is None else min(wanted, free // MEMORY_SHARE)
    return fits // 64 * 64


def _uniform_ids(model: BenchModel) -> Iterator[SparseBatch]:
    """Batches of as many ids a feature as the model's, none more frequent than others."""
    ids = tuple(IdConfig(min_ids=own.min_ids, max_ids=own.max_ids) for own in model.shape.ids)
    a_sample = sum((own.min_ids + own.max_ids) / 2 for own in ids)
    batches = RandomBatches(
        shape=replace(model.shape, ids=ids, num_dense=0),
        batch_size=max(1, round(NUM_ROWS[model.device.type] / a_sample)),
        seed=model.recipe.seed,
        split="bench gather",
        device=model.device,
    )
    return (batches[index].sparse for index in range(NUM_BATCHES))


def _bags_of(rows: Tensor) -> Tensor:
    """Offsets of bags of 20 ids."""
    edges = [*range(0, len(rows), IDS_PER_BAG), len(rows)]
    return torch.tensor(edges, dtype=rows.dtype, device=rows.device)


def _int8_loads(chosen: Sequence[tuple[str, Product]]) -> Iterator[Load]:
    """The project's own layers in integers, where it would take them: float32 in and out."""
    for kind, product in chosen:
        if product.kind == "forward" and product.k * product.n >= MIN_WEIGHTS:
            weight, bias = torch.randn(product.n, product.k), torch.zeros(product.n)
            layers = Int8Layers([(weight, bias)], [Range(-4.0, 4.0)])
            call = _without_k(partial(layers, torch.randn(product.m, product.k)))
            yield Load(PRODUCTS + "int8", product_name(kind, product), call, flop=product.flop)


def _without_k(call: Callable[[], object]) -> Callable[[int], object]:
    return lambda _: call()


def _many(
    call: Callable[[int], object], device: torch.device
) -> tuple[Callable[[int], object], int]:
    """A call that takes long enough to be timed, and how many of the given ones it makes."""
    count = ceil(MIN_SAMPLE_MS / _one_ms(call, device))
    if count == 1:
        return call, 1
    if device.type == "cuda":
        for k in range(count):
            call(k)  # compiles kernels, which a capture may not
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for k in range(count):
                call(k)
        return _without_k(graph.replay), count

    def many(first: int) -> None:
        for k in range(count):
            call(first * count + k)

    return many, count


def _one_ms(call: Callable[[int], object], device: torch.device) -> float:
    """Of a call, roughly: the second one."""
    (timed,) = measure([call], device, Effort(warmup_s=0.0, seconds=1e-6, num_rounds=1))
    return timed.rounds[0][0]
