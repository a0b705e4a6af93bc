"""Where the time of inference and of training goes, by operator class, against batch size.

Classes are those of the literature: fc (linear layers, forward and backward, with bias and ReLU),
embedding_bag (lookup, pooling, sort of ids, update of rows), interaction, other (loss, optimizer of
the MLPs, what is between operators). On the CPU torch's profiler slows small operators, so shares
come from it and the time of a step from a run without it.

Shapes: B batch, L ids in the batch, U different rows among them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import msgspec
import torch
from torch.profiler import record_function

from fastdlrm.batch import Batch
from fastdlrm.bench.breakdown import Classes, class_times
from fastdlrm.bench.counters import count
from fastdlrm.bench.counting import (
    ModelShape,
    Work,
    forward_work,
    training_work,
)
from fastdlrm.bench.measure import Timed, measure, wait
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.result import measurement, result_of, start
from fastdlrm.contracts.bench_result import BenchResult, Effort, Measurement
from fastdlrm.contracts.host import Fact
from fastdlrm.model.build import undrawn_interaction
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.predictor import Predictor
from fastdlrm.train.step import TrainStep

BATCH_SIZES = (1, 16, 64, 256, 1024)
COUNTED_S = 0.5
"""Of steps under hardware counters, about."""

STEP = "step"
OPERATOR_CLASSES: Classes = (
    (
        "embedding_bag",
        (
            "lookup",
            "embedding_bag",
            "gather_rows",
            "stack_rows",
            "sort",
            "radix",
            "row_order",
            "row_gradient",
            "update_rows",
            "row_update",
            "rowwise",
            "unique",
            "repeat_interleave",
            "cumsum",
            "chunk_",
            "run_",
        ),
    ),
    ("interaction", ("interaction", "bmm", "::cat", "catarray")),
    (
        "fc",
        (
            "addmm",
            "::mm",
            "linear",
            "gemm",
            "nvjet",
            "cutlass",
            "gemv",
            "splitk",
            "input_grad",
            "relu",
            "clamp_min",
            "add_",
            "mlp",
            "bias",
            "::sum",
        ),
    ),
)
"""The first class one of whose words is in an operator's name has its time."""

NOTES = (
    "shares of the time are torch's profiler's: of operators on the CPU, of kernels on a GPU",
    "flop and num_bytes are counted from the shapes; training counts the tables' update as SGD",
)

CLASS_NAMES = (*(name for name, _ in OPERATOR_CLASSES), "other")


@dataclass(frozen=True, slots=True)
class _Case:
    """One step that is measured."""

    kind: str
    batch_size: int
    call: Callable[[int], object]
    work: dict[str, Work]


def bench_operators(
    model: BenchModel, batch_sizes: Sequence[int], passes: Sequence[str], effort: Effort
) -> BenchResult:
    """Measure steps, then profile them and count their work.

    Args:
        model: What is measured.
        batch_sizes: B, each at least 1.
        passes: "inference", "training".
        effort: How long.

    Raises:
        ConfigError: The tables do not fit, or the model does not train so.
    """
    started, matmul = start(), model.settle_products()
    measurements = measure_steps(model, model.build(), batch_sizes, passes, effort)
    return result_of(
        "operators",
        model,
        started=started,
        matmul=matmul,
        effort=effort,
        settings={"batch_sizes": list(batch_sizes), "passes": list(passes)},
        measurements=measurements,
        notes=NOTES,
    )


def measure_steps(
    model: BenchModel,
    built: DLRM,
    batch_sizes: Sequence[int],
    passes: Sequence[str],
    effort: Effort,
) -> list[Measurement]:
    """Each step as a whole (operator "step"), then each operator class of it.

    Args:
        model: What is measured.
        built: Made of it; training changes its weights.
        batch_sizes: B, each at least 1.
        passes: "inference", "training".
        effort: How long.

    Raises:
        ConfigError: The model does not train so.
    """
    found = []
    for kind in passes:
        cases = [_case(model, built, kind, size) for size in batch_sizes]
        times = measure([case.call for case in cases], model.device, effort)
        for case, timed in zip(cases, times, strict=True):
            found += _measurements(case, timed, model.device, effort)
    return found


def model_shape(model: BenchModel) -> ModelShape:
    """What FLOPs and bytes are counted from."""
    config, schema = model.recipe.model, model.schema
    interaction = undrawn_interaction(config, schema)
    cost = interaction.cost()
    table_dtype = model.recipe.train.table_dtype
    return ModelShape(
        bottom=(len(schema.dense), *config.bottom_mlp) if schema.dense else (),
        top=(interaction.width, *config.top_mlp, 1),
        num_sparse=len(schema.sparse),
        dim=config.embedding_dim,
        joint_layers=cost.layers,
        num_products=cost.num_products,
        num_joint_moved=cost.num_moved,
        element_bytes=model.dtype.itemsize,
        row_element_bytes=4 if table_dtype == "fp32" else 2,
    )


def num_rows(batch: Batch) -> int:
    """U of a batch; a table that several features share counts for each of them."""
    sparse = batch.sparse
    if not sparse.num_features:
        return 0
    starts = sparse.offsets()[:: batch.num_samples].tolist()
    return sum(len(torch.unique(sparse.ids[a:b])) for a, b in pairwise(starts))


def _case(model: BenchModel, built: DLRM, kind: str, size: int) -> _Case:
    batches, shape = model.batches(size), model_shape(model)
    num_ids = sum(len(batch.sparse.ids) for batch in batches) / len(batches)
    if kind == "inference":
        call = _inference(Predictor(built.eval(), model.dtype), built, batches, model.dtype)
        return _Case(kind, size, call, forward_work(shape, size, num_ids))
    rows = sum(map(num_rows, batches)) / len(batches)
    step = TrainStep(
        built.train(),
        msgspec.structs.replace(
            model.recipe.train, global_batch_size=size, gradient_accumulation_steps=1
        ),
    )
    call = _training(step, batches)
    return _Case(kind, size, call, training_work(shape, size, num_ids, rows))


def _inference(
    predictor: Predictor, built: DLRM, batches: Sequence[Batch], dtype: torch.dtype
) -> Callable[[int], object]:
    @torch.inference_mode()
    def call(k: int) -> object:
        batch = batches[k % len(batches)]
        with record_function("embedding_bag"):
            pooled = built.tables(batch.sparse, dtype)
        return torch.sigmoid(predictor.head(batch.dense, pooled))

    return call


def _training(step: TrainStep, batches: Sequence[Batch]) -> Callable[[int], object]:
    return lambda k: step(batches[k % len(batches)], k)


def _measurements(
    case: _Case, timed: Timed, device: torch.device, effort: Effort
) -> list[Measurement]:
    """Of the whole step, and of each class the profiled milliseconds a step."""
    key = {"pass": case.kind, "batch_size": str(case.batch_size)}
    whole = measurement({**key, "operator": STEP}, timed, num_rows=case.batch_size)
    calls = max(1, round(COUNTED_S * 1e3 / whole.summary.median))
    total = case.work.values()
    found = [
        msgspec.structs.replace(
            whole,
            flop=sum(work.flop for work in total),
            num_bytes=sum(work.num_bytes for work in total),
            gathered_bytes=sum(work.gathered_bytes for work in total),
            counters=_counters(case, device, calls),
        )
    ]
    steps = ceil(effort.min_samples / effort.num_rounds)
    blocks = [
        class_times(case.call, device, steps, OPERATOR_CLASSES) for _ in range(effort.num_rounds)
    ]
    for name in CLASS_NAMES:
        rounds = tuple(tuple(block[name]) for block in blocks)
        one = measurement({**key, "operator": name}, Timed(rounds, "samples"))
        work = case.work.get(name)
        found.append(
            msgspec.structs.replace(
                one,
                flop=work and work.flop,
                num_bytes=work and work.num_bytes,
                gathered_bytes=work and work.gathered_bytes,
            )
        )
    return found


def _counters(case: _Case, device: torch.device, calls: int) -> dict[str, Fact]:
    if device.type == "cuda":
        return {}

    def call(k: int) -> None:
        case.call(k)
        wait(device)

    return count(call, calls)
