"""What a query costs between the event loop and a worker that computes nothing.

Usage: python benchmarks/bench_engine.py [--seconds 20]
Criteo's shape: 13 numbers and 26 ids a row, sent as `dense` and `ids`, or as 39 columns. Columns of
the result, in us a query, medians of rounds:
  KIND.N.alone_us    from submission to scores, one query at a time: latency of the hand-over
  KIND.N.stream_us   32 queries under way at once: time of the front and workers a query
  refused_us         a query that is refused because too much waits
  parked_us          a bare future that the loop resolves: what asyncio itself takes
Workers are pinned where there are enough cores.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import numpy as np
import uvloop
from null_model import LOADER
from results_file import write

from fastdlrm.contracts.payload import pack
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import Overloaded
from fastdlrm.serve.engine import Engine
from fastdlrm.serve.options import EngineOptions
from fastdlrm.serve.query import Query
from fastdlrm.serve.workers import Nursery

ROWS = (1, 100)
ROUND = 400
AT_ONCE = 32

Inputs = dict[str, WireTensor]
Step = Callable[[], Awaitable[object]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        samples = runner.run(measured(options))
    medians = {name: round(median(s[name] for s in samples), 2) for name in samples[0]}
    for name, value in medians.items():
        print(f"{name:24} {value:8.1f}")
    write("engine", vars(options), samples)


async def measured(options: argparse.Namespace) -> list[dict[str, float]]:
    """Samples of rounds, each a time in us by name."""
    sys.path.append(str(Path(__file__).parent))
    nursery = Nursery()
    engine_options = EngineOptions(
        loader=LOADER, num_workers=options.workers, depth=options.depth, pin=options.pin
    )
    engine = await Engine.start(Path(), "null", "1", engine_options, nursery)
    steps = {}
    for rows in ROWS:
        for kind, inputs in (("encoded", encoded(rows)), ("columns", columns(rows))):
            steps[f"{kind}.{rows}"] = asking(engine, inputs, rows)
    samples = []
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        sample = {"parked_us": await alone(parked), "refused_us": await refused(engine)}
        for name, step in steps.items():
            sample[f"{name}.alone_us"] = await alone(step)
            sample[f"{name}.stream_us"] = await stream(step)
        samples.append(sample)
    await engine.stop()
    nursery.stop()
    return samples


def asking(engine: Engine, inputs: Inputs, rows: int) -> Step:
    """One query: packed, submitted, answered."""

    def ask() -> Awaitable[object]:
        query = Query(num_rows=rows, payload=pack(inputs), deadline_s=time.monotonic() + 10)
        return engine.submit(query)

    return ask


async def alone(step: Step) -> float:
    """Median us of a step, one at a time."""
    times = []
    for _ in range(ROUND):
        began = time.perf_counter_ns()
        await step()
        times.append(time.perf_counter_ns() - began)
    return median(times) / 1e3


async def stream(step: Step) -> float:
    """Us a step where many are under way."""

    async def client() -> None:
        for _ in range(ROUND // AT_ONCE * 4):
            await step()

    began = time.perf_counter_ns()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return (time.perf_counter_ns() - began) / 1e3 / (ROUND // AT_ONCE * 4 * AT_ONCE)


async def refused(engine: Engine) -> float:
    """Median us of a refusal: the engine is given more than it may hold."""
    inputs = encoded(1)
    waiting = [asyncio.create_task(asking(engine, inputs, 60_000)()) for _ in range(2)]
    await asyncio.sleep(0)
    times = []
    for _ in range(50):
        query = Query(num_rows=60_000, payload=pack(inputs), deadline_s=time.monotonic() + 10)
        began = time.perf_counter_ns()
        with contextlib.suppress(Overloaded):
            await engine.submit(query)
        times.append(time.perf_counter_ns() - began)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return median(times) / 1e3


async def parked() -> None:
    """A future that the loop resolves at its next turn."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, None)
    await future


def encoded(rows: int) -> Inputs:
    """A request as `prepare` writes it."""
    dense = np.zeros((rows, 13), np.float32)
    ids = np.zeros((rows, 26), np.int32)
    return {"dense": WireTensor.from_array(dense), "ids": WireTensor.from_array(ids)}


def columns(rows: int) -> Inputs:
    """A request of raw columns."""
    numbers = {f"I{i}": WireTensor.from_array(np.zeros(rows, np.float32)) for i in range(13)}
    texts = {f"C{i}": WireTensor.from_texts(["68fd1e64"] * rows) for i in range(26)}
    return {**numbers, **texts}


if __name__ == "__main__":
    main()
