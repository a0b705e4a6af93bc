import time

import numpy as np
import torch

from fastdlrm.bench.measure import block_of, measure, summarise
from fastdlrm.contracts.bench_result import Effort

CPU = torch.device("cpu")
SHORT = Effort(warmup_s=0.0, seconds=0.2, spread=0.0, min_samples=6, num_rounds=3)


def test_samples_are_milliseconds_of_calls():
    (found,) = measure([lambda _: time.sleep(0.005)], CPU, SHORT)
    assert len(found.rounds) == 3
    assert min(min(samples) for samples in found.rounds) >= 5
    assert found.stopped == "time"


def test_inputs_rotate_and_calls_take_turns():
    seen: dict[str, list[int]] = {"a": [], "b": []}
    order: list[str] = []

    def call(name):
        def run(k):
            seen[name].append(k)
            order.append(name)
            time.sleep(0.002)

        return run

    found = measure([call("a"), call("b")], CPU, SHORT)
    assert all(ks == list(range(len(ks))) for ks in seen.values())
    turns = [name for place, name in enumerate(order) if place == 0 or order[place - 1] != name]
    # warm-up a b, then rounds a b, b a, a b, of which neighbours that are the same show as one
    assert "".join(turns) == "ababab"
    # two calls to warm up, and one unmeasured at the head of each round
    assert len(seen["a"]) == sum(map(len, found[0].rounds)) + 2 + 3


def test_it_stops_once_the_median_is_known():
    effort = Effort(warmup_s=0.0, seconds=60.0, spread=10.0, min_samples=3, num_rounds=100)
    began = time.perf_counter()
    (found,) = measure([lambda _: time.sleep(0.001)], CPU, effort)
    assert found.stopped == "spread"
    assert len(found.rounds) == 3  # of 100, 0.6 s each
    assert time.perf_counter() - began < 30


def test_it_stops_at_the_most_samples():
    effort = Effort(warmup_s=0.0, seconds=60.0, spread=0.0, min_samples=3, num_rounds=2)
    (found,) = measure([lambda _: None], CPU, effort)
    assert [len(samples) for samples in found.rounds] == [1000, 1000]
    assert found.stopped == "samples"


def test_a_slow_call_has_at_least_a_sample_a_round():
    effort = Effort(warmup_s=0.0, seconds=0.003, spread=0.0, min_samples=100, num_rounds=3)
    (found,) = measure([lambda _: time.sleep(0.02)], CPU, effort)
    assert [len(samples) for samples in found.rounds] == [1, 1, 1]


def test_a_summary_by_hand():
    # 1..100 in five rounds of 20: median 50.5, the 95th and 99th of 100 are 95 and 99
    rounds = tuple(tuple(float(x) for x in range(20 * r + 1, 20 * r + 21)) for r in range(5))
    found = summarise(rounds)
    assert (found.num_samples, found.median, found.p95, found.p99) == (100, 50.5, 95, 99)
    # rounds differ, so drawing whole rounds is far less sure than drawing single samples
    single = summarise((tuple(x for samples in rounds for x in samples),))
    assert found.high - found.low > 2 * (single.high - single.low)


def test_few_samples_have_no_tail():
    assert summarise(((1.0,) * 19,)).p95 is None
    assert summarise(((1.0,) * 20,)).p95 == 1
    assert summarise(((1.0,) * 99,)).p99 is None


def test_blocks_are_rounds():
    assert block_of(((1.0,) * 4,) * 5) == 4
    assert block_of(((1.0,) * 4,)) == 1
    assert block_of(((1.0,),) * 5) == 1


def test_the_interval_holds_the_median_as_often_as_it_says():
    """Of 100 intervals of 95 % fewer than 88 would hold it once in 700 times."""
    held = 0
    for seed in range(100):
        values = np.random.default_rng(seed).exponential(1.0, 200)
        found = summarise((tuple(values),))
        held += found.low < np.log(2) < found.high  # the median of the exponential distribution
    assert held >= 88
