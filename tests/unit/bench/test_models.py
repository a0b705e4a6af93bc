import pytest
import torch

from fastdlrm.bench.models import BenchModel, require_memory, scaled_rows
from fastdlrm.bench.operators import num_rows
from fastdlrm.errors import ConfigError


def load(name="rmc1-paper", **options) -> BenchModel:
    return BenchModel.load(name, **{"device": "cpu", "overrides": (), **options})


def test_tables_are_scaled_and_the_rest_is_not():
    whole, part = load(), load(rows_scale=0.01)
    assert whole.shape.tables == (100_000,) * 5
    assert part.shape.tables == (1000,) * 5
    assert part.recipe.model == whole.recipe.model
    assert part.table_bytes == 5 * 1000 * 32 * 4
    assert load(overrides=["train.table_dtype=bf16"]).table_bytes == 5 * 100_000 * 32 * 2


def test_rows_are_rounded_up_and_three_at_least():
    assert scaled_rows(1000, 0.0015) == 2 + 1  # 1.5 -> 2, of which random data asks for 3
    assert scaled_rows(1000, 0.0101) == 11
    assert scaled_rows(2, 1) == 2
    assert scaled_rows(0, 0.5) == 0


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5, float("nan")])
def test_other_scales_are_refused(scale):
    with pytest.raises(ConfigError, match=r"--rows-scale .*: above 0 and up to 1 is allowed"):
        load(rows_scale=scale)


def test_other_devices_are_refused():
    with pytest.raises(ConfigError, match="--device 'tpu': auto, cpu or cuda is allowed"):
        load(device="tpu")


def test_presets_of_raw_files_are_refused():
    with pytest.raises(ConfigError, match="set encoding = 'identity' or 'hash'"):
        load("tiny")


def test_compressed_tables_are_refused():
    compression = "model.compression={default={kind='hash', num_rows=9}}"
    with pytest.raises(ConfigError, match=r"model.compression is set; .* take that section out"):
        load(overrides=[compression])


def test_narrow_tables_are_refused():
    with pytest.raises(ConfigError, match=r"table_dims or mixed_dims is set; bench"):
        load(overrides=["model.table_dims={C1=2}"])


def test_tables_that_do_not_fit_name_a_scale_that_does():
    require_memory(8, 10, 1.0)
    require_memory(2**60, None, 1.0)
    # 80 % of 1 GiB over 4 GiB is 0.2 of a scale of 0.5: 0.1
    with pytest.raises(ConfigError, match=r"tables take 4.00 GiB .* --rows-scale 0.1 or less"):
        require_memory(4 * 2**30, 2**30, 0.5)


def test_batches_differ_and_stay_within_the_tables():
    model = load(rows_scale=0.001)
    first, second = model.batches(4, count=2)
    assert len(first.sparse.ids) == 4 * 5 * 80
    assert int(first.sparse.ids.max()) < 100
    assert not torch.equal(first.sparse.ids, second.sparse.ids)
    assert torch.equal(model.batches(4, count=1)[0].sparse.ids, first.sparse.ids)


def test_rows_of_a_batch_are_counted_by_table():
    model = load(rows_scale=0.0001)  # tables of 10 rows, 80 ids a bag: all of them, surely
    (batch,) = model.batches(4, count=1)
    assert num_rows(batch) == 5 * 10
    assert num_rows(load("ncf", rows_scale=0.0001).batches(1, count=1)[0]) == 4
