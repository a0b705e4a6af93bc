"""MLPerf LoadGen's Server scenario against a server over HTTP: a task on stdin, facts on stdout.

Task: host, port, path, bodies (one request a sample), qps, target_latency_ms, duration_ms, folder
(where LoadGen writes its logs). LoadGen draws the arrivals, keeps the clock and judges the run.
"""

import array
import http.client
import json
import os
import queue
import sys
import threading

import mlperf_loadgen as loadgen

NUM_THREADS = 16


class Client:
    """Sends what LoadGen issues, from threads that keep their connections."""

    def __init__(self, task: dict) -> None:
        self._place = (task["host"], task["port"])
        self._path = task["path"]
        self._bodies = [json.dumps(body).encode() for body in task["bodies"]]
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self.failures: list[str] = []
        self.scores: dict[int, float] = {}
        self.num_answered = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work) for _ in range(NUM_THREADS)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: list) -> None:
        """A query of LoadGen."""
        for sample in samples:
            self._queue.put((sample.id, sample.index))

    def flush(self) -> None:
        """Nothing is held back."""

    def name(self) -> str:
        """Of the system under test."""
        return "fastdlrm serve"

    def end(self) -> None:
        """Answer what is queued and end."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        connection = http.client.HTTPConnection(*self._place, timeout=30)
        while (entry := self._queue.get()) is not None:
            sample_id, index = entry
            connection.request("POST", self._path, self._bodies[index])
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 200:
                score = json.loads(content)["outputs"][0]["data"][0]
            else:
                score = float("nan")
            with self._lock:
                if answer.status == 200:
                    self.scores[index] = score
                    self.num_answered += 1
                else:
                    self.failures.append(f"{answer.status} {content[:200]!r}")
            data = array.array("f", [score])
            address, length = data.buffer_info()
            response = loadgen.QuerySampleResponse(sample_id, address, 4 * length)
            loadgen.QuerySamplesComplete([response])
        connection.close()


def settings_of(task: dict) -> loadgen.TestSettings:
    """LoadGen's settings of a Server run."""
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = task["qps"]
    settings.server_target_latency_ns = int(task["target_latency_ms"] * 1e6)
    settings.server_target_latency_percentile = 0.99
    settings.min_duration_ms = task["duration_ms"]
    settings.min_query_count = 1
    return settings


def main() -> None:
    """One run."""
    task = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # LoadGen writes to stdout, which is for the facts
    client = Client(task)
    num_samples = len(task["bodies"])
    sut = loadgen.ConstructQDL(client.issue, client.flush, client.name)
    library = loadgen.ConstructQSL(num_samples, num_samples, lambda _: None, lambda _: None)
    logs = loadgen.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = task["folder"]
    logs.log_output.copy_summary_to_stdout = False
    loadgen.StartTestWithLogSettings(sut, library, settings_of(task), logs)
    client.end()
    loadgen.DestroyQSL(library)
    loadgen.DestroyQDL(sut)
    facts = {
        "failures": client.failures[:20],
        "scores": client.scores,
        "num_answered": client.num_answered,
    }
    os.write(out, json.dumps(facts).encode())


main()
