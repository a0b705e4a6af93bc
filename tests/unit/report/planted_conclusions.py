"""Results with conclusions of our choosing: copies, rates within an SLA, rooflines."""

import msgspec

from fastdlrm.contracts.colocation import Colocation, Curve
from fastdlrm.contracts.latency_bounded import LatencyBounded, Rung
from fastdlrm.contracts.roofline import Advice, Ceilings, Placed, PlacedStep, Roofline
from tests.unit.report.planted import measured, result

RATES = {16: (20.0, 18.0, 25.0), 64: (50.0, 40.0, 60.0)}


def copies(number, median, *, p99=None, other="rmc1"):
    """Of rmc1, as many as told, at 100 samples a second each."""
    key = {"tables": "private", "copies": str(number), "model": "rmc1", "with": other}
    one = measured({**key, "batch_size": "32"}, median, p99=p99, samples_per_s=100.0 * number)
    summary = msgspec.structs.replace(one.summary, mean=1.5 * median, p5=median / 2)
    return msgspec.structs.replace(one, summary=summary)


def colocated(sla_ms=5.0, pairs=(), **changes):
    curve = {"model": "rmc1", "tables": "private", "knee": 2, "reason": "it bends"}
    return result(
        [copies(2, 3.0), copies(1, 2.0, p99=4.0), copies(2, 9.0, other="rmc3")],
        "colocate",
        colocation=Colocation(
            curves=(Curve(**curve, sla_ms=sla_ms, copies_at_sla=1),), pairs=tuple(pairs)
        ),
        **changes,
    )


def bounded(sla_ms, rates, *, tuned=64, static=16, model="rmc1", invalid=(), **changes):
    """Rates of each seed by B."""
    rungs = tuple(
        Rung(rows=rows, rates=seeds, samples_per_s=1.0, ceiling_qps=100.0, invalid=invalid)
        for rows, seeds in rates.items()
    )
    found = LatencyBounded(
        mode="search",
        sla_ms=sla_ms,
        percentile=95.0,
        confidence=0.99,
        sizes="production",
        workers=2,
        is_quick=False,
        rungs=rungs,
        static=static,
        tuned=tuned,
        visited=(static, tuned),
        argmax=tuned,
        tuned_to_static=2.5,
    )
    settings = {"sla_ms": sla_ms}
    return result(
        [], "latency-bounded", model=model, latency_bounded=found, settings=settings, **changes
    )


def placed(operator, flop, num_bytes, ms=2.0):
    rest = ("compute_ms", "stream_ms", "gather_ms", "fixed_ms", "floor_ms")
    return Placed(
        operator=operator,
        ms=ms,
        flop=flop,
        num_bytes=num_bytes,
        products_ms=None,
        bound="memory",
        **dict.fromkeys(rest, 1.0),
    )


def roofed(**changes):
    step = PlacedStep(
        kind="inference",
        batch_size=64,
        step=placed("step", 6e6, 4e6),
        operators=(placed("fc", 4e6, 1e6), placed("interaction", 0.0, 1e6)),
        advice=Advice(operator="fc", saved_ms=1.0, speedup=2.0, sentence="Do less."),
    )
    ceilings = Ceilings(
        gflop_s={"fp32": 100.0, "bf16": 400.0}, stream_gb_s={1 << 20: 50.0, 1 << 30: 20.0},
        gather_gb_s=10.0,
    )  # fmt: skip
    roofline = Roofline(ceilings=ceilings, steps=(step,))
    return result([], "roofline", roofline=roofline, **changes)
