import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.encoding import HASH_VERSION, Encoding, TableEncoding
from fastdlrm.contracts.manifest import DatasetManifest, SplitInfo, write_manifest
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.export_int32 import export_int32
from fastdlrm.data.write import write_part
from fastdlrm.errors import DataError
from tests import staging
from tests.staging import dense, sparse, table


def dataset(
    folder: Path, schema: Schema, rows: dict[str, list[object]], num_embeddings: int = 300
) -> Dataset:
    """A dataset of encoded rows: all of them train, in two parts, and validation."""
    kinds = {"label": pa.uint8()} | {f.name: pa.float32() for f in schema.dense}
    kinds |= {f.name: pa.list_(pa.uint16()) if f.bag else pa.uint16() for f in schema.sparse}
    batch = pa.record_batch({name: pa.array(rows[name], kind) for name, kind in kinds.items()})
    half = len(batch) // 2
    parts = {
        "train/part-00000.arrow": batch[:half],
        "train/part-00001.arrow": batch[half:],
        "validation/part-00000.arrow": batch,
    }
    size = TableEncoding(num_embeddings=num_embeddings, vocabulary="", coverage=1.0, first_id=0)
    info = SplitInfo(num_rows=len(batch), num_positives=sum(rows["label"]))  # type: ignore[arg-type]
    manifest = DatasetManifest(
        kind="dataset", version=1, created_by="", commit="", config={}, inputs=(), schema=schema,
        files={name: write_part(folder / name, part) for name, part in parts.items()},
        encoding=Encoding(
            hash_version=HASH_VERSION, dense={}, quantiles={},
            tables={t.name: size for t in schema.tables},
        ),
        splits={"train": info, "validation": info},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return Dataset.open(folder)


def schema_of(*features: DenseFeature | SparseFeature) -> Schema:
    tables = [table(f.table, "identity") for f in features if isinstance(f, SparseFeature)]
    return staging.schema(*features, *tables)


def logs(*numbers: float) -> list[float]:
    return [float(np.float32(np.log1p(x))) for x in numbers]


def test_by_hand(tmp_path: Path) -> None:
    schema = schema_of(dense("n", "log1p"), dense("m"), sparse("a", "int"), sparse("b", "int"))
    rows = {
        "label": [0, 1, 0],
        "n": logs(0, 7, 1_048_574),
        "m": [-5.0, 0.0, 16_777_216.0],
        "a": [299, 0, 1],
        "b": [2, 3, 4],
    }
    seen: list[int] = []
    sizes = export_int32(dataset(tmp_path / "data", schema, rows), tmp_path / "out", seen.append)
    assert sizes == {"train": 3, "validation": 3}
    assert sum(seen) == 6
    expected = struct.pack(
        "<15i", 0, 0, -5, 299, 2,   1, 7, 0, 0, 3,   0, 1_048_574, 16_777_216, 1, 4
    )  # fmt: skip
    for split in ("train", "validation"):
        assert (tmp_path / "out" / f"{split}.bin").read_bytes() == expected
    with np.load(tmp_path / "out" / "fea_count.npz") as counts:
        assert counts["counts"].tolist() == [300, 300]
        assert counts["counts"].dtype == np.int32
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "fea_count.npz", "train.bin", "validation.bin"
    ]  # fmt: skip


def test_numbers_survive_their_logarithm(tmp_path: Path) -> None:
    """Exactly to 1,048,574; beyond, what is written has the same float32 logarithm."""
    drawn = np.random.default_rng(3).integers(0, 2**31 - 1, 20_000)
    numbers = [*range(5_000), *range(1_048_000, 1_048_575), *drawn.tolist()]
    rows = {"label": [0] * len(numbers), "n": logs(*numbers)}
    out = tmp_path / "out"
    export_int32(dataset(tmp_path / "data", schema_of(dense("n", "log1p")), rows), out)
    found = np.fromfile(out / "train.bin", "<i4").reshape(-1, 2)[:, 1]
    small = np.array(numbers) <= 1_048_574
    assert found[small].tolist() == np.array(numbers)[small].tolist()
    assert logs(*found.tolist()) == rows["n"]
    assert (found[~small] != np.array(numbers)[~small]).any()


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        (dense("n"), 0.5, "dense feature 'n': 0.5 is no whole number of 32 bits; prepare without"),
        (dense("n"), 3e9, r"dense feature 'n': 3e\+09 is no whole number of 32 bits"),
        (dense("n", "log1p"), 0.25, "dense feature 'n': 0.284025 is no whole number"),
        (dense("n", "log1p"), 22.0, r"dense feature 'n': 3.58491e\+09 is no whole number"),
        (
            dense("n", "standardize"),
            0.0,
            "dense feature 'n': transform 'standardize' cannot be",
        ),
        (sparse("a", "int", bag=True), [1], "sparse feature 'a': a bag; a row of int32 holds one"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, feature: DenseFeature | SparseFeature, value: object, message: str
) -> None:
    rows = {"label": [0, 1], feature.name: [value, value]}
    found = dataset(tmp_path / "data", schema_of(feature), rows)
    with pytest.raises(DataError, match=message):
        export_int32(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_beyond_int32_is_refused(tmp_path: Path) -> None:
    rows = {"label": [0, 1], "a": [0, 1]}
    found = dataset(tmp_path / "data", schema_of(sparse("a", "int")), rows, 2**31 + 1)
    with pytest.raises(DataError, match=r"table 'a': 2147483649 rows; int32 holds ids up to"):
        export_int32(found, tmp_path / "out")


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    rows = {"label": [0, 1] * 5000, "a": [0, 1] * 5000}
    dataset(tmp_path / "data", schema_of(sparse("a", "int")), rows)
    script = (
        "import pathlib, sys; from fastdlrm.data.dataset import Dataset;"
        "from fastdlrm.data.export_int32 import export_int32;"
        "export_int32(Dataset.open(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "data", tmp_path / "out"],
        capture_output=True, text=True, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert "DataError" in done.stderr
    assert "train.bin: the disk refuses: [Errno 27] File too large; free disk space" in done.stderr
    assert not (tmp_path / "out").exists()
