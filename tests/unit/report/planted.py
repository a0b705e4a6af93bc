"""Results with numbers of our choosing, on machines that do not exist."""

import json
from pathlib import Path

import msgspec

from fastdlrm.contracts.bench_result import BenchResult, Effort, Measurement, Summary
from fastdlrm.contracts.host import Fact, Fingerprint, Gpu, Host
from fastdlrm.contracts.manifest import RunManifest, write_manifest
from fastdlrm.metrics.values import MetricValues, ReliabilityBin, RocCurve
from fastdlrm.report.provenance import Source

UNKNOWN = Fact(reason="not asked")


def host(name="Planted CPU", *, gpu=None, threads=4, load=0.0) -> Fingerprint:
    """A machine of 8 cores."""
    gpus = (
        ()
        if gpu is None
        else (Gpu(name=gpu, memory_bytes=1, compute_capability="9.0", has_bf16=True),)
    )
    return Fingerprint(
        host=Host(
            os="Linux",
            cpu_model=Fact(value=name),
            num_cores=Fact(value=8),
            num_usable_cores=Fact(value=8),
            core_quota=UNKNOWN,
            instruction_sets={},
            torch_cpu_capability=UNKNOWN,
            memory_bytes=UNKNOWN,
            available_memory_bytes=UNKNOWN,
            memory_limit_bytes=UNKNOWN,
            gpus=gpus,
            gpu_driver=UNKNOWN,
            cuda=UNKNOWN,
            no_gpu="",
        ),
        caches=(),
        smt=UNKNOWN,
        governor=UNKNOWN,
        copy_gb_s={"cpu": 10.0},
        num_threads=threads,
        load_average=load,
        versions={"python": "3.11"},
    )


def measured(key, median, *, p95=None, p99=None, samples_per_s=None, **more) -> Measurement:
    """A measurement whose interval is 10 % to either side."""
    return Measurement(
        key=key,
        unit="ms",
        rounds=((median,) * 3, (median,) * 3),
        stopped="spread",
        summary=Summary(
            num_samples=6, median=median, low=0.9 * median, high=1.1 * median, p95=p95, p99=p99
        ),
        samples_per_s=samples_per_s,
        **more,
    )


def result(measurements, benchmark="batch", **changes) -> BenchResult:
    """A result of model rmc1 at scale 0.5 on the planted CPU."""
    made = BenchResult(
        benchmark=benchmark,
        created_by="0",
        commit="0123456789abcdef",
        started="2026-01-02T03:04:05+00:00",
        model="rmc1",
        rows_scale=0.5,
        config={"model": {"embedding_dim": 32}, "train": {"precision": "fp32"}},
        settings={},
        device="cpu",
        matmul="default",
        effort=Effort(),
        host=host(),
        measurements=tuple(measurements),
        notes=("a note of the result",),
    )
    return msgspec.structs.replace(made, **changes)


def sources(*results) -> list[Source]:
    """Results as if read from files 0.json, 1.json, ..."""
    return [Source(Path(f"{i}.json"), one) for i, one in enumerate(results)]


def metrics(auc=0.75, **changes) -> MetricValues:
    """Of 40 rows, 12 of them positive, in two bins."""
    made = MetricValues(
        auc=auc,
        auc_error_bound=0.0,
        pr_auc=0.5,
        log_loss=0.4,
        ne=0.8,
        calibration=1.1,
        ece=0.05,
        accuracy=0.9,
        num_samples=40,
        num_positives=12,
        reliability=(
            ReliabilityBin(num_samples=20, mean_prediction=0.1, mean_label=0.05),
            ReliabilityBin(num_samples=20, mean_prediction=0.5, mean_label=0.55),
        ),
        roc=RocCurve(false_positive_rates=(0, 0.25, 1), true_positive_rates=(0, 0.75, 1)),
    )
    return msgspec.structs.replace(made, **changes)


def write_run(folder: Path, aucs=(0.6, 0.7), *, best_metric="auc", loss="bce", encoded) -> Path:
    """A run of batch size 100, with two records of training before each evaluation.

    Args:
        folder: To make.
        aucs: Of the evaluations, at steps 20, 40, ...
        best_metric: Of its config.
        loss: Of its config.
        encoded: Manifest of a dataset, for schema and encoding.
    """
    folder.mkdir()
    train = {"global_batch_size": 100, "best_metric": best_metric, "loss": loss}
    manifest = RunManifest(
        kind="run",
        version=1,
        created_by="0",
        commit="fedcba9876543210",
        config={"train": train, "model": {"embedding_dim": 8, "top_mlp": [4, 2]}},
        files={},
        schema=encoded.schema,
        encoding=encoded.encoding,
        dataset_sha256="",
        machine="Planted GPU",
    )
    write_manifest(folder, manifest)
    records = []
    for place, auc in enumerate(aucs, 1):
        for step in (20 * place - 10, 20 * place):
            timing = {"samples_per_s": 1000.0 + step}
            records.append(
                {"step": step, "kind": "train", "values": {"loss": 1 / step}, "timing": timing}
            )
        values = msgspec.to_builtins(metrics(auc, log_loss=auc))
        records.append({"step": 20 * place, "kind": "validation", "values": values, "timing": {}})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text(lines)
    return folder
