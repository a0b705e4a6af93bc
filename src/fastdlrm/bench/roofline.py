"""How far a model is from what its machine can do, and what would help most.

Ceilings and steps are measured in one run; `bench.placement` says how they are put together and
`bench.advice` what follows. Steps of one sample are always among those that are measured: they tell
the fixed time.

Shapes: B batch.
"""

from collections.abc import Mapping, Sequence

import msgspec

from fastdlrm.bench.advice import advise, faster_type
from fastdlrm.bench.ceilings import (
    MEMORY,
    last_cache_bytes,
    measure_gather,
    measure_host_copies,
    measure_products,
    measure_streams,
    product_name,
)
from fastdlrm.bench.counting import Product, forward_products, training_products
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.operators import NOTES, measure_steps, model_shape
from fastdlrm.bench.placement import PRODUCTS, ceilings_of, place, times_of
from fastdlrm.bench.result import result_of, start
from fastdlrm.contracts.bench_result import BenchResult, Effort, Measurement
from fastdlrm.contracts.roofline import Ceilings, Placed, PlacedStep, Roofline
from fastdlrm.model.embedding import EmbeddingTables

BATCH_SIZES = (64, 1024)
"""Besides 1."""

NO_EXCHANGE = (
    "all-to-all is not measured: it needs ranks; give --ranks N to measure it between N of them"
)


def bench_roofline(
    model: BenchModel,
    batch_sizes: Sequence[int],
    passes: Sequence[str],
    effort: Effort,
    exchange: Sequence[Measurement] = (),
) -> BenchResult:
    """Measure ceilings and steps, and put the ones under the others.

    Args:
        model: What is measured.
        batch_sizes: B, each at least 1; 1 is added.
        passes: "inference", "training".
        effort: How long.
        exchange: All-to-all, measured before among ranks; empty: this is the only process.

    Raises:
        ConfigError: The tables do not fit, or the model does not train so.
    """
    started, matmul = start(), model.settle_products()
    precision = model.recipe.train.precision
    sizes, built, device = sorted({1, *batch_sizes}), model.build(), model.device
    assert isinstance(built.tables, EmbeddingTables)
    asked = products_of(model, [size for size in sizes if size > 1], passes)
    measured = [
        *measure_streams(device, effort),
        *measure_gather(model, built.tables, effort),
        *measure_products([one for each in asked.values() for one in each], device, effort),
        *(measure_host_copies(device, effort) if device.type == "cuda" else ()),
        *exchange,
    ]
    steps = measure_steps(model, built, sizes, passes, effort)
    roofline = roofline_of(measured, steps, asked, precision, device.type == "cuda")
    return msgspec.structs.replace(
        result_of(
            "roofline",
            model,
            started=started,
            matmul=matmul,
            effort=effort,
            settings={"batch_sizes": sizes, "passes": list(passes)},
            measurements=[*measured, *steps],
            notes=[
                *notes(roofline, measured, last_cache_bytes(device), model.table_bytes),
                *input_note(model, roofline.ceilings, sizes),
                *(() if exchange else [NO_EXCHANGE]),
                *NOTES,
            ],
        ),
        roofline=roofline,
    )


def products_of(
    model: BenchModel, batch_sizes: Sequence[int], passes: Sequence[str]
) -> dict[tuple[str, int], list[Product]]:
    """What linear layers multiply, by pass and batch size."""
    shape = model_shape(model)
    of_pass = {"inference": forward_products, "training": training_products}
    return {(kind, size): of_pass[kind](shape, size) for kind in passes for size in batch_sizes}


def roofline_of(
    measured: Sequence[Measurement],
    steps: Sequence[Measurement],
    asked: Mapping[tuple[str, int], Sequence[Product]],
    precision: str,
    on_gpu: bool,
) -> Roofline:
    """Steps under ceilings.

    Args:
        measured: The ceilings.
        steps: With a step of one sample of each pass.
        asked: Products of each step that were measured.
        precision: Of the model's products: fp32, tf32 or bf16.
        on_gpu: Whether the steps ran there.
    """
    ceilings, times = ceilings_of(measured), times_of(steps)
    own = own_precisions(precision, ceilings)
    peak = max(ceilings.gflop_s[name] for name in own)
    alone = {tuple(m.key.values()): m.fastest_round for m in measured}
    placed = []
    for (kind, size), found in times.items():
        products = asked.get((kind, size))
        products_ms = None
        if products:
            products_ms = sum(
                min(alone[PRODUCTS + name, product_name(p.kind, p)] for name in own)
                for p in products
            )
        step, operators = place(found, times[kind, 1], ceilings, peak, products_ms)
        allowed = [name for name in ceilings.gflop_s if name != "int8" or kind == "inference"]
        placed.append(
            PlacedStep(
                kind=kind,
                batch_size=size,
                step=step,
                operators=operators,
                advice=advise(
                    step,
                    operators,
                    faster=faster_type(ceilings, own, allowed),
                    on_gpu=on_gpu,
                ),
            )
        )
    return Roofline(ceilings=ceilings, steps=tuple(placed))


def own_precisions(precision: str, ceilings: Ceilings) -> list[str]:
    """Types in which a model's products may be computed; a CPU slow at bf16 could take float32."""
    return [name for name in dict.fromkeys((precision, "fp32")) if name in ceilings.gflop_s]


def notes(
    roofline: Roofline,
    measured: Sequence[Measurement],
    cache_bytes: int,
    table_bytes: int,
) -> list[str]:
    """Where counted bytes and measured ceilings do not say what they seem to.

    Args:
        roofline: Of the model.
        measured: The ceilings.
        cache_bytes: Of the last cache; 0 where it is not known.
        table_bytes: Of all tables.
    """
    found = []
    streamed = min(m.num_bytes or 0 for m in measured if m.key["of"] == MEMORY)
    if not cache_bytes:
        found.append("this machine tells no cache: whether copies were larger is not known")
    elif streamed <= cache_bytes:
        found.append(
            f"too little memory is free: copies of {_mb(streamed)} fit the last cache of "
            f"{_mb(cache_bytes)}, so the speed of memory is the cache's"
        )
    if 0 < table_bytes <= cache_bytes:
        found.append(
            f"tables of {_mb(table_bytes)} fit the last cache of {_mb(cache_bytes)}: the gather's "
            "speed is the cache's; a larger --rows-scale has memory's"
        )
    placed = [(step, one) for step in roofline.steps for one in step.operators]
    return [*found, *(_above_ceiling(step, one) for step, one in placed if one.share > 1)]


def input_note(model: BenchModel, ceilings: Ceilings, batch_sizes: Sequence[int]) -> list[str]:
    """What copying a batch to a GPU would add; steps have theirs there already."""
    if ceilings.host_to_device_gb_s is None:
        return []
    size = max(batch_sizes)
    (batch,) = model.batches(size, count=1)
    sparse = batch.sparse
    tensors = (batch.dense, batch.labels, sparse.ids, sparse.lengths, sparse.weights)
    num_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    ms = num_bytes / ceilings.host_to_device_gb_s / 1e6
    return [
        f"inputs lie on the device already; those of {size} samples, {_mb(num_bytes)}, would take "
        f"{ms:.3g} ms from page-locked memory"
    ]


def _above_ceiling(step: PlacedStep, placed: Placed) -> str:
    where = f"{step.kind} of {step.batch_size}: {placed.operator}"
    if placed.compute_ms == placed.floor_ms:
        return (
            f"{where} is {placed.share:.2f} times as fast as the fastest product measured: "
            "its share of the profiled time may be off, or the ceiling was measured under load"
        )
    return (
        f"{where} moves its counted bytes {placed.share:.2f} times as fast as its ceiling: caches "
        "held some of them, so they are no bound; the step's floor takes its own time"
    )


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.3g} MB"
