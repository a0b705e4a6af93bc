"""Encoding "reference" against the oracle of what the DLRM reference does with Criteo's logs."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fastdlrm.contracts.manifest import DatasetManifest, read_manifest
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.generate import generate
from fastdlrm.train.evaluate import scores as logits_of
from fastdlrm.train.run import Run
from tests.builders import fastdlrm, invoke, shared_data
from tests.oracles import CriteoRow, criteo_reference

DENSE = [f"I{i}" for i in range(1, 14)]
SPARSE = [f"C{i}" for i in range(1, 27)]


def as_reference(max_ind_range: int = 0) -> list[str]:
    settings = {"encoding": "reference", "min_count": 1, "max_rows": max_ind_range}
    pairs = [f"data.sparse.0.{key}={value}" for key, value in settings.items()]
    return [word for pair in [*pairs, "data.shuffle=false"] for word in ("--set", pair)]


def lines_of(paths: Sequence[Path]) -> list[list[str]]:
    days = []
    for path in paths:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            days.append(list(file))
    return days


def encoded(folder: Path, split: str) -> pa.Table:
    parts = sorted((folder / split).iterdir())
    return pa.concat_tables(pa.ipc.open_file(str(part)).read_all() for part in parts)


def assert_rows_are(found: pa.Table, expected: Sequence[CriteoRow]) -> None:
    assert found["label"].to_pylist() == [label for label, _, _ in expected]
    ids = np.stack([found[name].to_numpy() for name in SPARSE], axis=1)
    np.testing.assert_array_equal(ids, [rows for _, _, rows in expected])
    dense = np.stack([found[name].to_numpy() for name in DENSE], axis=1)
    np.testing.assert_allclose(dense, [numbers for _, numbers, _ in expected], rtol=1e-6)


def assert_same_logarithms(found: np.ndarray, expected: np.ndarray) -> None:
    both = [
        np.log1p(numbers.astype(np.float64)).astype(np.float32) for numbers in (found, expected)
    ]
    np.testing.assert_array_equal(*both)


def assert_tables_are(folder: Path, counts: Sequence[int]) -> None:
    tables = read_manifest(folder, DatasetManifest).encoding.tables
    assert [tables[name].num_embeddings for name in SPARSE] == counts


@pytest.mark.parametrize("max_ind_range", [0, 500])
def test_a_generated_log(tmp_path: Path, max_ind_range: int) -> None:
    generate(tmp_path / "log", num_rows=3000, num_files=3, gzip=True, seed=5)
    logs = sorted((tmp_path / "log").glob("day_*.gz"))
    data = tmp_path / "data"
    invoke(
        "prepare", "--config", "criteo-sample", "--input", tmp_path / "log" / "day_*.gz",
        "--out", data, *as_reference(max_ind_range),
    )  # fmt: skip
    days, counts = criteo_reference(lines_of(logs), max_ind_range)
    assert_tables_are(data, counts)
    for split, rows in zip(("train", "validation", "test"), days, strict=True):
        assert_rows_are(encoded(data, split), rows)


def test_the_real_sample(tmp_path: Path) -> None:
    """80,000 real rows: six parts train, one validation, one test."""
    folder = shared_data() / "criteo_sample"
    logs = [folder / f"day_{i}.gz" for i in range(8)]
    data = tmp_path / "data"
    invoke(
        "prepare", "--config", "criteo-sample", "--input", folder / "day_*.gz", "--out", data,
        *as_reference(),
    )  # fmt: skip
    days, counts = criteo_reference(lines_of(logs))
    assert_tables_are(data, counts)
    assert_rows_are(encoded(data, "train"), [row for day in days[:6] for row in day])
    assert_rows_are(encoded(data, "validation"), days[6])
    assert_rows_are(encoded(data, "test"), days[7])


def test_predict_encodes_alike(tmp_path: Path) -> None:
    """Scores of raw rows are those of the dataset's rows; a value never seen is refused."""
    generate(tmp_path / "log", num_rows=2000, num_files=3, gzip=False, seed=5)
    logs = tmp_path / "log" / "day_*"
    small = ["--set", "model.embedding_dim=4", "--set", "model.bottom_mlp=[4]"]
    invoke(
        "prepare", "--config", "criteo-sample", "--input", logs, "--out", tmp_path / "data",
        *as_reference(),
    )  # fmt: skip
    run = tmp_path / "run"
    invoke(
        "train", "--config", "criteo-sample", "--data", tmp_path / "data", "--out", run, *small,
        "--set", "train.max_steps=3", "--set", "train.evaluate_every_steps=0", *as_reference(),
    )  # fmt: skip
    invoke("predict", "--run", run, "--input", logs, "--out", tmp_path / "scores.parquet")
    scores = pq.read_table(tmp_path / "scores.parquet")["score"].to_numpy()
    splits = ("train", "validation", "test")
    sizes = [encoded(tmp_path / "data", split).num_rows for split in splits]
    assert len(scores) == sum(sizes) == 2000

    opened, dataset = Run.open(run), Dataset.open(tmp_path / "data")
    model = opened.load_model("last")
    found = [
        batch.sigmoid().numpy()
        for split in splits
        for batch, _ in logits_of(model, dataset.split(split), 512, torch.device("cpu"))
    ]
    np.testing.assert_allclose(scores, np.concatenate(found), rtol=1e-5)

    with next((tmp_path / "log").glob("day_0*")).open() as file:
        fields = next(file).rstrip("\n").split("\t")
    fields[14] = "deadbeef"
    (tmp_path / "new.tsv").write_text("\t".join(fields) + "\n")
    complaint = fastdlrm(
        "predict", "--run", run, "--input", tmp_path / "new.tsv", "--out", tmp_path / "s", code=1
    )
    assert "'C1': no row for 1 of 1 values, the first deadbeef; encoding 'reference'" in complaint


def test_binary_files_and_back(tmp_path: Path) -> None:
    """Rows of 40 int32 as the reference writes them, and the same dataset read from them again."""
    generate(tmp_path / "log", num_rows=3000, num_files=3, gzip=False, seed=5)
    logs = sorted((tmp_path / "log").glob("day_*"))
    invoke(
        "prepare", "--config", "criteo-sample", "--input", tmp_path / "log" / "day_*",
        "--out", tmp_path / "data", *as_reference(),
    )  # fmt: skip
    invoke("export-binary", "--data", tmp_path / "data", "--out", tmp_path / "bin")
    days, counts = criteo_reference(lines_of(logs))
    for split, day, log in zip(("train", "validation", "test"), days, lines_of(logs), strict=True):
        rows = [
            [label, *(max(int(x or 0), 0) for x in line.split("\t")[1:14]), *ids]
            for (label, _, ids), line in zip(day, log, strict=True)
        ]
        expected = np.array(rows)
        written = np.fromfile(tmp_path / "bin" / f"{split}.bin", "<i4").reshape(-1, 40)
        # A dense number beyond 2^20 has lost digits that its float32 logarithm does not hold.
        exact = expected <= 1_048_574
        np.testing.assert_array_equal(written[exact], expected[exact])
        assert exact.mean() > 0.99
        assert_same_logarithms(written[~exact], expected[~exact])
    with np.load(tmp_path / "bin" / "fea_count.npz") as found:
        assert found["counts"].tolist() == counts

    files = [tmp_path / "bin" / f"{split}.bin" for split in ("train", "validation", "test")]
    inputs = [word for file in files for word in ("--input", file)]
    again = tmp_path / "again"
    small = ("data.shuffle=false", "model.embedding_dim=4", "model.bottom_mlp=[4]")
    settings = [word for setting in small for word in ("--set", setting)]
    config = ["--config", "criteo-binary", *settings]
    invoke("prepare", *config, *inputs, "--out", again)
    assert_tables_are(again, counts)
    for split in ("train", "validation", "test"):
        assert encoded(again, split).equals(encoded(tmp_path / "data", split))
    run = tmp_path / "run"
    invoke("train", *config, "--data", again, "--out", run, "--set", "train.max_steps=1")
    invoke("predict", "--run", run, "--input", files[2], "--out", tmp_path / "scores.parquet")
    assert pq.read_metadata(tmp_path / "scores.parquet").num_rows == len(days[2])
