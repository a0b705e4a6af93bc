import math

import pytest
import torch

from fastdlrm.batch import Batch
from fastdlrm.contracts.hashing import mix
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.keys import stream
from fastdlrm.data.multihot import MLPERF_SIZES, MultiHot, bags_of, write_multi_hot
from fastdlrm.errors import ConfigError, DataError
from tests.builders import tiny_dataset

NAMES = ("a", "b", "c")
TABLES = (1000, 40_000_000, 3)
SIZES = (4, 100, 1)
DISTRIBUTIONS = ("uniform", "pareto")


def _maker(distribution="uniform", sizes=SIZES, seed=0):
    return MultiHot(
        features=NAMES, tables=TABLES, sizes=sizes, distribution=distribution, seed=seed
    )


def _by_hand(feature, identifier, distribution, size):
    """Plain Python: splitmix64 of seed, feature, id and place."""
    rows = TABLES[feature]
    key = int(stream(0, f"bag {NAMES[feature]}"))
    bag = [identifier]
    for place in range(1, size):
        unit = (mix(key ^ mix(identifier | place << 32)) >> 11) / 2**53
        if distribution == "uniform":
            bag.append(math.floor(unit * rows))
        else:
            inverse = 1 / (1 - unit)
            bag.append(int(math.floor(inverse * inverse * (inverse * inverse) - 1) % rows))
    return bag


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("feature", [0, 1])
def test_bags_by_hand(feature, distribution):
    ids = range(0, 1000, 37)
    bags = _maker(distribution).bags(feature, torch.tensor(ids))
    expected = [_by_hand(feature, i, distribution, SIZES[feature]) for i in ids]
    assert bags.tolist() == expected


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tensors_and_compiled_code_agree(distribution, dtype):
    ids = torch.arange(3000, dtype=dtype)
    compiled = _maker(distribution).bags(1, ids)
    tensors = bags_of(ids, stream(0, "bag b"), 100, TABLES[1], distribution == "pareto")
    assert torch.equal(compiled, tensors)
    assert compiled.dtype == tensors.dtype


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_bag_is_a_function_of_its_id(distribution):
    ids = torch.tensor([5, 3, 5], dtype=torch.int32)
    maker = _maker(distribution)
    bags = maker.bags(1, ids)
    assert bags.shape == (3, 100)
    assert bags.dtype == torch.int32
    assert bags[:, 0].tolist() == [5, 3, 5]
    assert torch.equal(bags[0], bags[2])
    assert not torch.equal(bags[0], bags[1])
    assert torch.equal(_maker(distribution, (4, 10, 1)).bags(1, ids), bags[:, :10])
    assert not torch.equal(_maker(distribution, seed=1).bags(1, ids), bags)
    assert 0 <= int(bags.min()) <= int(bags.max()) < TABLES[1]


def test_features_of_one_table_have_bags_of_their_own():
    maker = MultiHot(features=["a", "b"], tables=[1000, 1000], sizes=[50, 50])
    ids = torch.arange(10)
    same = (maker.bags(0, ids) == maker.bags(1, ids))[:, 1:].float().mean()
    assert same < 0.05


def test_uniform_ids_are_uniform():
    bags = _maker(sizes=(101, 1, 1)).bags(0, torch.arange(1000))[:, 1:]
    counts = torch.bincount(bags.flatten() // 10, minlength=100)
    # 100,000 draws over 100 cells: chi square of 99 degrees has mean 99 and deviation 14.
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 99 + 5 * 14


def test_pareto_ids_have_the_tail_of_shape_a_quarter():
    """P(x < k) = 1 - (1 + k)**-0.25: of a table far larger, 16 % are 0 and 44 % below 9."""
    maker = MultiHot(features=["a"], tables=[2**31 - 1], sizes=[101], distribution="pareto")
    ids = maker.bags(0, torch.arange(2000))[:, 1:].flatten()
    for bound in (1, 9, 1000):
        expected = 1 - (1 + bound) ** -0.25
        assert (ids < bound).float().mean().item() == pytest.approx(expected, abs=0.006)


def test_a_batch_becomes_one_of_bags():
    batch = Batch.allocate(5, 2, 3)
    batch.dense.normal_()
    batch.labels.zero_()
    batch.sparse.ids.copy_(torch.arange(15) % 3)
    maker = _maker()
    made = maker(batch)
    lengths = made.sparse.lengths.view(3, 5)
    assert lengths.tolist() == [[4] * 5, [100] * 5, [1] * 5]
    parts = torch.split(made.sparse.ids, [20, 500, 5])
    for f, part in enumerate(parts):
        single = batch.sparse.ids.view(3, 5)[f]
        assert torch.equal(part.view(5, -1), maker.bags(f, single))
    assert torch.equal(made.dense, batch.dense)


@pytest.mark.gpu
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_gpu_makes_the_same_bags(distribution):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    maker, ids = _maker(distribution), torch.arange(1000)
    for feature in range(3):
        assert torch.equal(maker.bags(feature, ids.cuda()).cpu(), maker.bags(feature, ids))


def test_the_sizes_of_mlperf():
    assert len(MLPERF_SIZES) == 26
    assert sum(MLPERF_SIZES) == 214


@pytest.mark.parametrize("sizes", [(1, 2), (1, 2, 0)])
def test_every_feature_needs_a_size(sizes):
    with pytest.raises(ConfigError, match=r"multi-hot sizes \[1, 2.*\] for 3 sparse features; one"):
        _maker(sizes=sizes)


# Datasets.

TINY_SIZES = (3, 1, 2, 1, 5, 10)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_dataset_becomes_one_of_bags(single, tmp_path, distribution):
    write_multi_hot(single, tmp_path / "bags", TINY_SIZES, distribution=distribution)
    made = Dataset.open(tmp_path / "bags", deep=True)
    assert made.manifest.splits == single.manifest.splits
    assert made.manifest.encoding == single.manifest.encoding
    assert [f.bag for f in made.schema.sparse] == [size > 1 for size in TINY_SIZES]
    features, tables = single.schema.sparse, single.manifest.encoding.tables
    maker = MultiHot(
        features=[f.name for f in features],
        tables=[tables[f.table].num_embeddings for f in features],
        sizes=TINY_SIZES,
        distribution=distribution,
    )
    for split in single.manifest.splits:
        before, after = (d.split(split).batch(slice(0, 500)) for d in (single, made))
        expected = maker(before)
        assert torch.equal(after.sparse.ids, expected.sparse.ids)
        assert torch.equal(after.sparse.lengths, expected.sparse.lengths)
        assert torch.equal(after.dense, before.dense)
        assert torch.equal(after.labels, before.labels)


def test_the_bytes_do_not_depend_on_the_threads(single, tmp_path):
    files = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        manifest = write_multi_hot(single, out, TINY_SIZES, num_workers=workers)
        files.append(manifest.files)
    assert files[0] == files[1]


def test_rows_are_reported_as_they_are_written(single, tmp_path):
    seen = []
    write_multi_hot(single, tmp_path / "bags", TINY_SIZES, progress=seen.append)
    assert sum(seen) == sum(info.num_rows for info in single.manifest.splits.values())


def test_bags_do_not_become_bags(single, tmp_path):
    write_multi_hot(single, tmp_path / "bags", TINY_SIZES)
    with pytest.raises(DataError, match="feature 'C1' is a bag already; name a dataset of single"):
        write_multi_hot(Dataset.open(tmp_path / "bags"), tmp_path / "again", TINY_SIZES)


def test_a_seed_has_64_bits(single, tmp_path):
    with pytest.raises(ConfigError, match=r"multi-hot seed is -1; 0 \.\. 2\*\*64 - 1 is allowed"):
        write_multi_hot(single, tmp_path / "bags", TINY_SIZES, seed=-1)
