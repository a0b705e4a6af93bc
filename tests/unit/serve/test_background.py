"""Work that must not end: a failure is told, counted, and the work begun again."""

import asyncio
import io
import json

from fastdlrm.contracts.delta import DELTAS, write_delta
from fastdlrm.serve import background
from fastdlrm.serve.background import Background
from fastdlrm.serve.config import Watch
from fastdlrm.serve.log import EventLog
from fastdlrm.serve.metrics import Metrics
from tests.serving import MODEL, free_ports, running
from tests.unit.serve.test_server import until
from tests.unit.serve.test_watch import delta


def test_failed_work_is_told_and_begins_again(monkeypatch):
    monkeypatch.setattr(background, "AGAIN_S", 0.0)
    written, metrics = io.StringIO(), Metrics()
    calls = []

    async def scenario() -> None:
        again = asyncio.Event()

        async def work() -> None:
            calls.append(len(calls))
            if len(calls) < 3:
                raise ZeroDivisionError(f"call {len(calls)}")
            again.set()
            await asyncio.Event().wait()

        kept = Background(EventLog(written), metrics)
        kept.start("watch", work)
        await again.wait()
        kept.stop("watch")
        kept.stop("watch")

    asyncio.run(scenario())
    assert calls == [0, 1, 2]
    first, second = (json.loads(line) for line in written.getvalue().splitlines())
    assert (first["event"], first["level"], first["task"]) == ("task_failed", "error", "watch")
    assert first["problem"] == "ZeroDivisionError('call 1')"
    assert "in work" in first["trace"]
    assert second["problem"] == "ZeroDivisionError('call 2')"
    assert b'fastdlrm_task_failures_total{task="watch"} 2.0' in metrics.text()


def test_a_server_follows_its_repository_again_after_a_failure(tmp_path):
    with running(tmp_path, free_ports(watch=Watch(every_s=0.01))) as server:
        server.engine.delta_problem = ZeroDivisionError("odd")
        write_delta(tmp_path / MODEL / "1" / DELTAS, delta(1))
        until(lambda: any(line["event"] == "task_failed" for line in server.log))
        _, _, text = server.ask("GET", "/metrics")
        assert b'fastdlrm_task_failures_total{task="watch"} ' in text
        assert b'fastdlrm_task_failures_total{task="tick"} 0.0' in text
        assert server.json("GET", "/v2/health/ready")[0] == 200
        server.engine.delta_problem = None
        until(lambda: server.engine.sequence == 1)
