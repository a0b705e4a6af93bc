"""A version on two engines: which takes a query, and how they are one to the server."""

import asyncio

import numpy as np
import pytest

from fastdlrm.contracts.schema import DenseFeature, Label, Schema
from fastdlrm.contracts.signature import Signature
from fastdlrm.errors import ExportError, Overloaded
from fastdlrm.serve.start import Served
from tests.serving_model import query_of, query_of_rows
from tests.unit.serve.test_engine import Planted, delta, running_loop

pytestmark = [pytest.mark.xdist_group("engine"), pytest.mark.timeout(120)]
SIGNATURE = Signature(
    Schema(
        label=Label(column="y", positive=("1",), negative=("0",)),
        dense=(DenseFeature(name="x", column="x", transform="none", fill=0.0),),
        sparse=(),
        tables=(),
    )
)


@pytest.fixture(scope="module")
def loop():
    with running_loop() as made:
        yield made


def test_large_queries_go_whole_to_the_engine_for_them(loop, tmp_path):
    async def test() -> None:
        planted = Planted(tmp_path, loop.nursery)
        small = await planted.start(num_workers=1, max_batch_rows=4)
        large = await planted.start(num_workers=1, max_batch_rows=64)
        served = Served(small, SIGNATURE, large, 8)
        for rows in (1, 7, 8, 60):
            x = np.arange(rows, dtype=np.float32)
            assert np.array_equal((await served.submit(query_of_rows(x))).scores, 2 * x)
        assert [engine.statistics().num_answered for engine in (small, large)] == [2, 2]
        assert [rows for _, rows, _ in planted.flushed] == [1, 4, 3, 8, 60]
        assert served.state().num_workers == 2
        assert await served.drain(10)
        for rows in (1, 8):
            with pytest.raises(Overloaded, match="is being replaced or stopped"):
                await served.submit(query_of(*range(rows)))
        await served.stop()

    loop.run(test())


def test_a_delta_reaches_both_engines_also_at_a_second_attempt(loop, tmp_path):
    async def test() -> None:
        planted = Planted(tmp_path, loop.nursery)
        engines = [await planted.start() for _ in range(2)]
        served = Served(engines[0], SIGNATURE, engines[1], 2)
        path = delta(tmp_path, 1, 100.0)
        await engines[0].apply(path)  # as if the second one had failed
        assert served.state().sequence == 0
        assert await served.apply(path) == served.state().sequence == 1
        found = await asyncio.gather(*(served.submit(query_of(*x)) for x in ([1.0], [1.0, 2.0])))
        assert [scores.scores.tolist() for scores in found] == [[102.0], [102.0, 104.0]]
        with pytest.raises(ExportError, match="delta 5 after 1"):
            await served.apply(delta(tmp_path, 5, 0.0))
        await served.stop()

    loop.run(test())
