"""Measured steps under measured ceilings: what bounds them, and the least time they could take.

An operator's floor is its FLOPs at the speed of the fastest product or its bytes at the memory's,
whichever is longer; of the bytes, rows at random places go at the speed of the gather, the rest at
that of a copy of as many bytes. A step's floor is the sum over its operators, as nothing overlaps,
none above the time it takes. A step of one sample has next to no work, so what it takes above its
floor is what every step takes, however many its samples.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastdlrm.bench.operators import CLASS_NAMES, STEP
from fastdlrm.contracts.bench_result import Measurement
from fastdlrm.contracts.roofline import Bound, Ceilings, Placed

BETWEEN = "between"
"""Time of a step in which no operator runs: Python, the start of calls."""
PRODUCTS = "gemm "
"""Begins the names of ceilings of products; the type follows."""
FIXED_SHARE = 0.5
"""Of the time of an operator without counted work: from there on it is called fixed."""


class Times(NamedTuple):
    """Of a step.

    Attributes:
        step: As a whole, with its work.
        operators: Milliseconds by operator class, `BETWEEN` among them; their sum is the step's.
        measured: Each class' measurement, with its work.
    """

    step: Measurement
    operators: dict[str, float]
    measured: dict[str, Measurement]


class Least(NamedTuple):
    """Milliseconds at the machine's speed.

    Attributes:
        compute: Of FLOPs.
        stream: Of bytes in order.
        gather: Of rows at random places.
    """

    compute: float = 0.0
    stream: float = 0.0
    gather: float = 0.0

    @property
    def floor(self) -> float:
        """Arithmetic runs beside memory, one stream of bytes not beside another."""
        return max(self.compute, self.stream + self.gather)


def ceilings_of(measurements: Sequence[Measurement]) -> Ceilings:
    """The fastest of what was measured.

    Args:
        measurements: Of `bench.ceilings`.
    """
    by_name: dict[str, list[Measurement]] = defaultdict(list)
    for found in measurements:
        by_name[found.key["ceiling"]].append(found)
    stream = {int(m.num_bytes or 0): m.giga_per_s for m in by_name["copy"]}
    stream[max(stream)] = max(stream[max(stream)], *(m.giga_per_s for m in by_name["triad"]))

    def fastest(name: str) -> float | None:
        return max((m.giga_per_s for m in by_name[name]), default=None)

    products = [name for name in by_name if name.startswith(PRODUCTS)]
    return Ceilings(
        gflop_s={name.removeprefix(PRODUCTS): fastest(name) or 0.0 for name in products},
        stream_gb_s=stream,
        gather_gb_s=fastest("gather"),
        host_to_device_gb_s=fastest("host to device"),
        device_to_host_gb_s=fastest("device to host"),
        all_to_all_gb_s=fastest("all-to-all"),
    )


def stream_gb_s(ceilings: Ceilings, num_bytes: float) -> float:
    """The speed of bytes in order that are moved again and again: of the fastest copy of as many or
    more; between two sizes that were measured it is the smaller's, so that it is never too low.

    Args:
        ceilings: Of the machine.
        num_bytes: Read plus written.
    """
    speeds = ceilings.stream_gb_s
    size = max((size for size in speeds if size <= num_bytes), default=0)
    return max(speed for other, speed in speeds.items() if other >= size)


def least_of(work: Measurement | None, ceilings: Ceilings, peak_gflop_s: float) -> Least:
    """What an operator class takes at the machine's speed; nothing where its work is not counted.

    Args:
        work: With FLOPs and bytes.
        ceilings: Of the machine.
        peak_gflop_s: Of the products.
    """
    if work is None or not work.num_bytes:
        return Least()
    gathered = work.gathered_bytes or 0.0
    in_order = work.num_bytes - gathered
    return Least(
        (work.flop or 0.0) / peak_gflop_s / 1e6,
        in_order / stream_gb_s(ceilings, in_order) / 1e6,
        gathered / ceilings.gather_gb_s / 1e6 if gathered and ceilings.gather_gb_s else 0.0,
    )


def split_time(step: Measurement, measured: Mapping[str, Measurement]) -> dict[str, float]:
    """Milliseconds of a step by operator class, and `BETWEEN` them.

    The profiler slows operators on a CPU, and on a GPU they may overlap: where they take more than
    the step does, they are scaled to it.

    Args:
        step: Measured without the profiler.
        measured: Of the classes, profiled.
    """
    whole, times = step.summary.median, {n: found.summary.median for n, found in measured.items()}
    total = sum(times.values())
    scale = min(1.0, whole / total) if total else 0.0
    return {name: scale * ms for name, ms in times.items()} | {BETWEEN: max(0.0, whole - total)}


def times_of(measurements: Sequence[Measurement]) -> dict[tuple[str, int], Times]:
    """Steps by pass and batch size.

    Args:
        measurements: Of `bench.operators`.
    """
    steps: dict[tuple[str, int], dict[str, Measurement]] = defaultdict(dict)
    for found in measurements:
        key = found.key["pass"], int(found.key["batch_size"])
        steps[key][found.key["operator"]] = found
    times = {}
    for key, each in steps.items():
        measured = {name: each[name] for name in CLASS_NAMES}
        times[key] = Times(each[STEP], split_time(each[STEP], measured), measured)
    return times


def place(
    times: Times,
    single: Times,
    ceilings: Ceilings,
    peak_gflop_s: float,
    products_ms: float | None,
) -> tuple[Placed, tuple[Placed, ...]]:
    """A step and its operator classes under the ceilings.

    Args:
        times: Of the step.
        single: Of the same with one sample, or the same itself.
        ceilings: Of the machine.
        peak_gflop_s: Of the products.
        products_ms: Of its products, each measured alone; None where they were not.
    """
    placed = []
    for name, ms in times.operators.items():
        work = times.measured.get(name)
        of_one = least_of(single.measured.get(name), ceilings, peak_gflop_s)
        fixed_ms = min(ms, max(0.0, single.operators[name] - of_one.floor))
        least = least_of(work, ceilings, peak_gflop_s)
        placed.append(
            Placed(
                operator=name,
                ms=ms,
                flop=(work.flop if work else None) or 0.0,
                num_bytes=(work.num_bytes if work else None) or 0.0,
                compute_ms=least.compute,
                stream_ms=least.stream,
                gather_ms=least.gather,
                fixed_ms=fixed_ms,
                products_ms=products_ms if name == "fc" else None,
                floor_ms=least.floor,
                bound="overhead" if name == BETWEEN else bound_of(least, fixed_ms, ms),
            )
        )
    return _whole(times.step, placed), tuple(placed)


def bound_of(least: Least, fixed_ms: float, ms: float) -> Bound:
    """What takes longest.

    Args:
        least: FLOPs and bytes at the machine's speed.
        fixed_ms: Of every step.
        ms: In fact.
    """
    if not least.floor:
        return "overhead" if fixed_ms >= FIXED_SHARE * ms else "uncounted"
    if fixed_ms > least.floor:
        return "overhead"
    if least.compute == least.floor:
        return "compute"
    return "gather" if least.gather >= least.stream else "memory"


def _whole(step: Measurement, operators: Sequence[Placed]) -> Placed:
    under: dict[Bound, float] = defaultdict(float)
    for placed in operators:
        under[placed.bound] += placed.ms

    def total(name: str) -> float:
        return float(sum(getattr(placed, name) for placed in operators))

    return Placed(
        operator=STEP,
        ms=step.summary.median,
        flop=step.flop or 0.0,
        num_bytes=step.num_bytes or 0.0,
        compute_ms=total("compute_ms"),
        stream_ms=total("stream_ms"),
        gather_ms=total("gather_ms"),
        fixed_ms=total("fixed_ms"),
        products_ms=None,
        floor_ms=sum(min(placed.floor_ms, placed.ms) for placed in operators),
        bound=max(under, key=lambda bound: under[bound]),
    )
