"""What one version of a model was asked and how long it took, since it was loaded.

Invariant: one thread alone, that of the event loop, writes and reads it.
"""

import time

from fastdlrm.contracts.server_info import (
    BatchStatistics,
    Durations,
    InferStatistics,
    ModelStatistics,
)


class Tally:
    """Sums over a version's queries and batches."""

    __slots__ = (
        "batches",
        "compute_ns",
        "encode_ns",
        "fail_ns",
        "last_ms",
        "num_failed",
        "num_rows",
        "num_succeeded",
        "queue_ns",
        "success_ns",
    )

    def __init__(self) -> None:
        self.num_succeeded = 0
        self.success_ns = 0
        self.num_failed = 0
        self.fail_ns = 0
        self.queue_ns = 0
        self.encode_ns = 0
        self.compute_ns = 0
        self.num_rows = 0
        self.last_ms = 0
        self.batches: dict[int, list[int]] = {}
        """By rows: batches, encode_ns, compute_ns. Batches have few sizes: they are bounded."""

    def batch(self, rows: int, encode_ns: int, compute_ns: int) -> None:
        """Count a batch that a worker computed."""
        sums = self.batches.get(rows)
        if sums is None:
            sums = self.batches[rows] = [0, 0, 0]
        sums[0] += 1
        sums[1] += encode_ns
        sums[2] += compute_ns
        self.last_ms = int(time.time() * 1000)

    def statistics(self, name: str, version: str) -> ModelStatistics:
        """The sums as the protocol's extension for statistics gives them."""
        count = self.num_succeeded
        num_batches = sum(number for number, _, _ in self.batches.values())
        return ModelStatistics(
            name=name,
            version=version,
            last_inference=self.last_ms,
            inference_count=self.num_rows,
            execution_count=num_batches,
            inference_stats=InferStatistics(
                success=Durations(count=count, ns=self.success_ns),
                fail=Durations(count=self.num_failed, ns=self.fail_ns),
                queue=Durations(count=count, ns=self.queue_ns),
                compute_input=Durations(count=count, ns=self.encode_ns),
                compute_infer=Durations(count=count, ns=self.compute_ns),
                compute_output=Durations(count=count),
            ),
            batch_stats=tuple(
                BatchStatistics(
                    batch_size=rows,
                    compute_input=Durations(count=number, ns=encode_ns),
                    compute_infer=Durations(count=number, ns=compute_ns),
                    compute_output=Durations(count=number),
                )
                for rows, (number, encode_ns, compute_ns) in sorted(self.batches.items())
            ),
        )
