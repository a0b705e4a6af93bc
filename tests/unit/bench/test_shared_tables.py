import os

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
    before = set(os.listdir("/proc/self/fd"))
    names = set(os.listdir("/dev/shm"))
    with SharedTables(model) as shared:
        assert os.readlink(f"/proc/self/fd/{shared.fd}").startswith("/memfd:fastdlrm-tables")
        assert not {n for n in set(os.listdir("/dev/shm")) - names if "tables" in n}
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_the_system_says_of_large_pages(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert large_pages(tmp_path) == {"private": "madvise", "shared": "unknown"}
