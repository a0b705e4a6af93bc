"""What would help a step most.

The rule: of its operator classes, the one with most time above its floor; if it took its floor,
the step would be so much faster (Amdahl's law). What that time is, decides what to do: products
that are slow at these shapes even alone, time that every step takes however few its samples, or the
rest; the largest names the change. A step that attains 80 % of its floor can only have less to do:
then it is the operator with the largest floor, and a type in which the machine multiplies faster.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fastdlrm.bench.placement import BETWEEN
from fastdlrm.contracts.roofline import Advice, Ceilings, Placed

NEAR = 0.8
"""Share of the floor from which only less work helps."""
MIN_FASTER = 1.1
"""A type whose products are less faster than that is none to name."""

_FIXED = (
    "what every step has, however few its samples: larger batches share it, {fewer_calls} or fused "
    "operators save it"
)
_SHAPES = (
    "products that even alone are slower at these shapes than the fastest: larger batches, wider "
    "layers or another library help"
)
_REST = {
    "fc": "what it does beside its products (bias, ReLU, copies, cold caches): fuse it",
    "embedding_bag": "what it does beside reading rows (sort, update, offsets): faster kernels",
    "interaction": "what it does beside its products: one fused kernel",
    "other": "loss, the MLPs' optimizer and small operators: fuse them",
    BETWEEN: "Python and the start of calls: {fewer_calls}",
}
_FEWER_CALLS = {True: "a CUDA graph", False: "a compiled program"}
"""By whether it is a GPU."""


class Part(NamedTuple):
    """Of an operator's time above its floor.

    Attributes:
        ms: How much.
        help: What it is, and what takes it away.
    """

    ms: float
    help: str


class Faster(NamedTuple):
    """The type whose products are the fastest here.

    Attributes:
        precision: fp32, tf32, bf16 or int8.
        factor: By which it is faster than the model's.
    """

    precision: str
    factor: float


def faster_type(ceilings: Ceilings, own: Sequence[str], allowed: Sequence[str]) -> Faster:
    """The type to compute in if only speed counts.

    Args:
        ceilings: Of the machine.
        own: Types in which the model's products may be computed.
        allowed: Types that could take their place.
    """
    name = max(allowed, key=lambda name: ceilings.gflop_s[name])
    return Faster(name, ceilings.gflop_s[name] / max(ceilings.gflop_s[one] for one in own))


def advise(
    step: Placed,
    operators: Sequence[Placed],
    *,
    faster: Faster,
    on_gpu: bool,
) -> Advice:
    """The change that would help most.

    Args:
        step: As a whole.
        operators: Its classes.
        faster: The type in which products could be computed, if the accuracy allows.
        on_gpu: Whether the step ran there.
    """
    if step.share >= NEAR:
        return _less_work(step, operators, faster)
    worst = max(operators, key=above)
    saved = above(worst)
    part = largest_part(worst, _FEWER_CALLS[on_gpu])
    return _advice(
        step,
        worst.operator,
        saved,
        f"{worst.operator} takes {worst.ms:.3g} of the step's {step.ms:.3g} ms, its floor is "
        f"{worst.floor_ms:.3g} ms; {part.ms:.3g} ms of the rest is {part.help}. At its floor the "
        "step",
    )


def above(placed: Placed) -> float:
    """Milliseconds above the floor; 0 where caches made it faster than that."""
    return max(0.0, placed.ms - placed.floor_ms)


def largest_part(placed: Placed, fewer_calls: str) -> Part:
    """Of an operator's time above its floor.

    Args:
        placed: The operator.
        fewer_calls: What saves the start of calls.
    """
    shapes = min(above(placed), max(0.0, (placed.products_ms or 0.0) - placed.floor_ms))
    fixed = min(placed.fixed_ms, above(placed) - shapes)
    rest = above(placed) - shapes - fixed
    parts = [Part(shapes, _SHAPES), Part(fixed, _FIXED), Part(rest, _REST[placed.operator])]
    largest = max(parts, key=lambda part: part.ms)
    return Part(largest.ms, largest.help.format(fewer_calls=fewer_calls))


def _less_work(step: Placed, operators: Sequence[Placed], faster: Faster) -> Advice:
    most = max(operators, key=_attainable)
    saved_share, gain = 0.5, "With half of it"
    if most.compute_ms >= most.stream_ms + most.gather_ms:
        what = "FLOPs: narrower layers have fewer"
        if faster.factor >= MIN_FASTER:
            what += f", and {faster.precision} multiplies {faster.factor:.2g} times as fast here"
            saved_share, gain = 1 - 1 / faster.factor, f"In {faster.precision}"
    elif most.gather_ms >= most.stream_ms:
        what = "rows: fewer ids, or a narrower train.table_dtype"
    else:
        what = "bytes: a narrower train.precision has fewer"
    if most.share > 1:
        what += "; caches serve it faster than its ceiling already"
    return _advice(
        step,
        most.operator,
        saved_share * _attainable(most),
        f"the step attains {step.share:.0%} of its floor, so only less work helps; "
        f"{_attainable(most):.3g} ms of it are {most.operator}'s {what}. {gain} the step",
    )


def _attainable(placed: Placed) -> float:
    """Milliseconds of the floor, no more than it takes."""
    return min(placed.floor_ms, placed.ms)


def _advice(step: Placed, operator: str, saved_ms: float, text: str) -> Advice:
    rest = step.ms - min(saved_ms, 0.999 * step.ms)
    speedup = step.ms / rest
    sentence = f"{text} would take {rest:.3g} ms, {speedup:.2f} times as fast."
    return Advice(operator=operator, saved_ms=saved_ms, speedup=speedup, sentence=sentence)
