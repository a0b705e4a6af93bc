import math

import numpy as np
import pytest
import torch

from fastdlrm.config import load_config
from fastdlrm.data.random import RandomBatches, RandomShape, draw_batch, draw_ids
from fastdlrm.data.synthetic import IdConfig, RandomConfig
from fastdlrm.errors import ConfigError
from fastdlrm.train.recipe import Recipe
from tests.staging import dense, schema, sparse, table

CPU = torch.device("cpu")
DISTRIBUTIONS = ("uniform", "gaussian", "zipf", "cubic")


def _batches(shape, split="train", seed=1, size=500, device=CPU):
    return RandomBatches(shape=shape, batch_size=size, seed=seed, split=split, device=device)


def _shape(*ids, tables=None, **settings):
    tables = tables or (1000,) * len(ids)
    return RandomShape(num_dense=3, tables=tables, ids=ids, **settings)


def _same(a, b):
    pairs = [(a.dense, b.dense), (a.labels, b.labels), (a.sparse.ids, b.sparse.ids)]
    if a.sparse.lengths is not None:
        pairs.append((a.sparse.lengths, b.sparse.lengths))
    return all(torch.equal(x, y) for x, y in pairs)


def _units(count):
    """Evenly spread over [0, 1), so that shares come out almost exactly."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


MIXED = _shape(
    IdConfig(distribution="zipf", max_ids=5),
    IdConfig(distribution="gaussian"),
    IdConfig(min_ids=3, max_ids=3),
)


def test_a_batch_is_a_function_of_seed_split_and_index():
    batches = _batches(MIXED)
    assert _same(batches[10**12], batches[10**12])
    others = [batches[1], _batches(MIXED, seed=2)[0], _batches(MIXED, split="test")[0]]
    assert not any(_same(batches[0], other) for other in others)


def test_test_rows_are_not_train_rows():
    """The reference's test set is its train set."""
    shape = _shape(*[IdConfig()] * 3, tables=(10**6,) * 3)
    rows = {}
    for split in ("train", "validation", "test"):
        batches = [_batches(shape, split)[index] for index in range(4)]
        rows[split] = {tuple(row) for batch in batches for row in batch.dense.tolist()}
        assert len(rows[split]) == 2000
    assert not rows["train"] & rows["test"]
    assert not rows["train"] & rows["validation"]
    assert not rows["validation"] & rows["test"]


def test_splits_and_batches_do_not_correlate():
    """Of 1500 independent pairs a correlation is below 0.1 in all but 1 of 10,000 cases."""
    first = _batches(MIXED)[0].dense.reshape(-1)
    for other in (_batches(MIXED, "test")[0], _batches(MIXED)[1], _batches(MIXED, seed=2)[0]):
        assert abs(np.corrcoef(first, other.dense.reshape(-1))[0, 1]) < 0.1


def test_ids_stay_below_every_tables_rows():
    """In the reference one Gaussian range serves all tables, however small."""
    for distribution in DISTRIBUTIONS:
        edges = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
        for rows in (1, 2, 3, 4096, 4097, 10**6, 2**31 - 1):
            for settings in ({}, {"exponent": 1, "std": 5.0}, {"exponent": 60, "mean": 0.0}):
                config = IdConfig(distribution=distribution, **settings)
                ids = draw_ids(rows, config, torch.cat([edges, _units(1000)]))
                assert ids.dtype == torch.int32
                assert 0 <= int(ids.min()) <= int(ids.max()) < rows


def _shares(rows, config, count=200_000):
    ids = draw_ids(rows, config, _units(count)).numpy()
    return np.bincount(ids, minlength=rows) / count


def test_uniform_ids_are_equally_frequent():
    assert _shares(7, IdConfig()) == pytest.approx(np.full(7, 1 / 7), abs=1e-4)


@pytest.mark.parametrize("exponent", [0.5, 1, 1.05, 2])
@pytest.mark.parametrize("rows", [10, 20_000])
def test_zipf_ids_have_their_shares(rows, exponent):
    """Rank k from 1 has k**-exponent over the sum; 20,000 rows reach beyond the summed head."""
    weights = [k**-exponent for k in range(1, rows + 1)]
    expected = np.array(weights) / sum(weights)
    shares = _shares(rows, IdConfig(distribution="zipf", exponent=exponent), 2_000_000)
    assert np.cumsum(shares) == pytest.approx(np.cumsum(expected), abs=2e-6)


def test_gaussian_ids_are_a_truncated_normal():
    """Mean 300 and standard deviation 400 of 1000 rows, between 0 and 1000."""

    def below(x):
        return 0.5 * (1 + math.erf((x - 300) / 400 / math.sqrt(2)))

    config = IdConfig(distribution="gaussian", mean=0.3, std=0.4)
    shares = np.cumsum(_shares(1000, config))
    for row in (0, 100, 299, 700, 998):
        expected = (below(row + 1) - below(0)) / (below(1000) - below(0))
        assert shares[row] == pytest.approx(expected, abs=1e-5)


def test_cubic_ids_by_hand():
    """floor(1000 u**3) is below 125 for u below 1/2, below 8 for u below 1/5."""
    shares = np.cumsum(_shares(1000, IdConfig(distribution="cubic")))
    assert shares[124] == pytest.approx(0.5, abs=1e-4)
    assert shares[7] == pytest.approx(0.2, abs=1e-4)


def test_every_row_of_a_large_table_can_be_drawn():
    """32 bits would not do: of 2**31 - 1 rows, odd ones, too."""
    ids = draw_ids(2**31 - 1, IdConfig(), _batch_units(1000))
    assert 400 < int((ids % 2).sum()) < 600


def _batch_units(count):
    return torch.from_numpy(np.random.default_rng(1).random(count))


def test_bags_have_lengths_within_their_bounds():
    batch = _batches(
        _shape(IdConfig(min_ids=0, max_ids=3), IdConfig(min_ids=2, max_ids=2)), size=4000
    )[0]
    free, fixed = batch.sparse.lengths.view(2, -1)
    counts = torch.bincount(free, minlength=4)
    assert len(counts) == 4
    assert counts.tolist() == pytest.approx([1000] * 4, abs=150)
    assert fixed.unique().tolist() == [2]
    assert len(batch.sparse.ids) == int(batch.sparse.lengths.sum())
    assert batch.sparse.lengths.dtype == torch.int32


def test_single_ids_lie_in_one_buffer():
    batch = _batches(_shape(IdConfig(), IdConfig(), tables=(10, 2000)))[0]
    assert batch.buffer is not None
    assert batch.sparse.lengths is None
    small, large = batch.sparse.ids.view(2, -1)
    assert int(small.max()) == 9
    assert int(large.max()) > 1000


def test_dense_features_and_labels():
    uniform = _batches(_shape(IdConfig(), label_rate=0.1), size=20_000)[0]
    assert uniform.dense.dtype == torch.float32
    assert 0 <= uniform.dense.min() < 0.001
    assert 0.999 < uniform.dense.max() <= 1
    assert set(uniform.labels.tolist()) == {0.0, 1.0}
    assert uniform.labels.mean().item() == pytest.approx(0.1, abs=0.01)
    normal = _batches(_shape(IdConfig(), dense="normal"), size=20_000)[0].dense
    assert normal.mean().item() == pytest.approx(0, abs=0.02)
    assert normal.std().item() == pytest.approx(1, abs=0.02)
    assert torch.isfinite(normal).all()


def test_the_smallest_and_the_largest_uniform_make_finite_normals():
    units = iter([torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), torch.zeros(2)])
    shape = RandomShape(num_dense=1, tables=(), ids=(), dense="normal")
    dense = draw_batch(shape, 2, lambda count: next(units)).dense
    assert torch.isfinite(dense).all()


def test_labels_are_independent_of_features():
    """Correlations of 20,000 rows are below 0.03 in all but 1 of 10,000 cases."""
    batch = _batches(_shape(IdConfig(), IdConfig()), size=20_000)[0]
    columns = [*batch.dense.T, *batch.sparse.ids.view(2, -1)]
    for column in columns:
        assert abs(np.corrcoef(column, batch.labels)[0, 1]) < 0.03


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_draws():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shapes = [MIXED, _shape(IdConfig(distribution="cubic"), IdConfig(), dense="normal")]
    for shape in shapes:
        cpu = _batches(shape)[3]
        gpu = _batches(shape, device=torch.device("cuda"))[3].to("cpu")
        assert torch.equal(gpu.labels, cpu.labels)
        torch.testing.assert_close(gpu.dense, cpu.dense)
        assert (gpu.sparse.ids != cpu.sparse.ids).float().mean() < 1e-3  # a power is rounded


def test_the_shape_of_a_schema():
    recipe = load_config("random", Recipe)
    shape = RandomShape.of(recipe.data.schema(), recipe.random)
    assert shape.num_dense == 8
    assert shape.tables == (100_000,) * 4 + (1000,) * 2 + (100_000,) * 2
    assert [group.max_ids for group in shape.ids] == [1, 1, 1, 1, 1, 1, 10, 10]
    assert shape.ids[2] == IdConfig()


def _hashed(name, **settings):
    return [sparse(name, **settings), table(name, "hash", max_rows=10)]


@pytest.mark.parametrize(
    ("parts", "groups", "message"),
    [
        (_hashed("a"), [{"features": ("b",)}], r"no sparse feature 'b'; one of \['a'\] is allowed"),
        (
            _hashed("a"),
            [{"features": ("a",), "max_ids": 4}],
            "feature 'a' has bags of 1 to 4 ids; set bag = true in its group of data.sparse",
        ),
        (
            [dense("x", "standardize")],
            [],
            "dense feature 'x' has transform 'standardize', which is fitted on raw files",
        ),
        (
            _hashed("a", key="quantile"),
            [],
            "sparse feature 'a' has key 'quantile' or weights, which are read from raw files",
        ),
        (
            _hashed("a", bag=True, weight_column="w"),
            [],
            "sparse feature 'a' has key 'quantile' or weights",
        ),
        (
            [sparse("a")],
            [],
            "table 'a' has encoding 'vocabulary' and max_rows 0; set encoding = 'identity' or",
        ),
        (
            [sparse("a"), table("a", "hash", max_rows=2**31)],
            [],
            f"encoding 'hash' and max_rows {2**31}; set encoding = 'identity' or 'hash' and max_r",
        ),
        (
            [sparse("a", key="int"), table("a", "identity")],
            [],
            "encoding 'identity' and max_rows 0; set encoding = 'identity' or 'hash'",
        ),
    ],
)
def test_a_schema_that_needs_raw_files_is_refused(parts, groups, message):
    config = RandomConfig(sparse=tuple(IdConfig(**group) for group in groups))
    with pytest.raises(ConfigError, match=message):
        RandomShape.of(schema(*parts), config)
