import os
from pathlib import Path

import pytest
import torch

from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.shared_tables import SharedTables, large_pages


@pytest.fixture
def model():
    return BenchModel.load("rmc1-paper", rows_scale=0.01, device="cpu", overrides=())


def test_they_hold_the_rows_of_private_ones(model):
    with SharedTables(model) as shared:
        built = shared.build(model)
    assert torch.equal(built.tables.weight, model.build().tables.weight)


def test_rows_in_16_bits(model):
    half = BenchModel.load(
        "rmc1-paper",
        rows_scale=0.01,
        device="cpu",
        overrides=["train.table_dtype=bf16", "train.precision=bf16"],
    )
    with SharedTables(half) as shared:
        assert os.fstat(shared.fd).st_size == 5 * 1000 * 32 * 2
        assert torch.equal(shared.build(half).tables.weight, half.build().tables.weight)


def test_all_who_map_them_see_the_same_memory(model):
    with SharedTables(model) as shared:
        first, second = shared.build(model), shared.build(model)
        os.pwrite(shared.fd, b"\0" * 128, 0)  # the first row
        for built in (first, second):
            assert not built.tables.weight[0].any()
            assert built.tables.weight[1].any()


def test_nothing_is_left(model):
    before = set(Path("/proc/self/fd").iterdir())
    names = set(Path("/dev/shm").iterdir())
    with SharedTables(model) as shared:
        target = Path(f"/proc/self/fd/{shared.fd}").readlink()
        assert str(target).startswith("/memfd:fastdlrm-tables")
        assert not [
            path for path in set(Path("/dev/shm").iterdir()) - names if "tables" in path.name
        ]
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_what_the_system_says_of_large_pages(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert large_pages(tmp_path) == {"private": "madvise", "shared": "unknown"}
