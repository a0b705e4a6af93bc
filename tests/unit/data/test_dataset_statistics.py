"""Statistics of a small dataset against its rows, one by one in plain Python."""

import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon

from fastdlrm.contracts.manifest import DatasetManifest, read_manifest, write_manifest
from fastdlrm.contracts.schema import DenseFeature
from fastdlrm.data.dataset_statistics import DatasetStatistics, dataset_statistics
from fastdlrm.data.distribution import QUANTILES
from fastdlrm.data.sparse_statistics import LENGTH_QUANTILES
from fastdlrm.errors import DataError
from tests.every_kind import DENSE, NOTHING_HELD_OUT, SPARSE, every_kind

SPLITS = ("train", "validation", "test")
SINGLE, BAG = ("item", "word", "user", "price <bucket>"), "seen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    every_kind(folder)
    return folder / "data"


@pytest.fixture(scope="module")
def rows(folder):
    """By split and column, the encoded values as lists."""
    found = {}
    for split in SPLITS:
        tables = [pa.ipc.open_file(path).read_all() for path in sorted((folder / split).iterdir())]
        found[split] = pa.concat_tables(tables).to_pydict()
    return found


@pytest.fixture(scope="module")
def statistics(folder):
    return dataset_statistics(folder)


def feature_of(statistics, name, kind="sparse"):
    return next(f for f in getattr(statistics, kind) if f.name == name)


def test_rows_and_labels(statistics, rows):
    # Files of 120 rows: test is the last, validation the last 36 rows of the others.
    assert {n: s.num_rows for n, s in statistics.splits.items()} == {
        "train": 204,
        "validation": 36,
        "test": 120,
    }
    for name, split in statistics.splits.items():
        assert split.num_positives == sum(rows[name]["label"])
    assert statistics.inputs[2].num_positives == sum(rows["test"]["label"])
    assert sum(f.num_positives for f in statistics.inputs) == sum(
        split.num_positives for split in statistics.splits.values()
    )
    train, validation = statistics.splits["train"], statistics.splits["validation"]
    assert (train.is_shuffled, train.runs) == (True, ())
    assert not validation.is_shuffled


def test_runs_of_a_split_in_input_order(tmp_path):
    every_kind(tmp_path, shuffle=False, rows_a_file=1700)
    train = dataset_statistics(tmp_path / "data").splits["train"]
    # 3 x 1700 rows, a third of them test, a tenth of all validation: 2,890 rows, runs of 1,000+.
    assert [run.num_rows for run in train.runs] == [1445, 1445]
    table = pa.ipc.open_file(tmp_path / "data" / "train" / "part-00000.arrow").read_all()
    labels = table.column("label").to_pylist()
    assert [run.num_positives for run in train.runs] == [sum(labels[:1445]), sum(labels[1445:])]


@pytest.mark.parametrize("name", [*SINGLE, BAG])
def test_ids(statistics, rows, name):
    feature = feature_of(statistics, name)
    is_bag = name == BAG
    train_ids = set()
    for split in SPLITS:
        column = rows[split][name]
        ids = [i for bag in column for i in bag] if is_bag else column
        present = [i for i in ids if i != 1]
        if split == "train":
            train_ids = set(ids)
        found = feature.splits[split]
        assert found.num_ids == len(ids)
        assert found.num_distinct == len({i for i in ids if i > 1})
        assert found.out_of_vocabulary_share == pytest.approx(ids.count(0) / len(present))
        num_missing = sum(not bag for bag in column) if is_bag else ids.count(1)
        assert found.missing_share == pytest.approx(num_missing / len(column))
        if split == "train":
            assert (found.unseen_share, found.drift) == (None, None)
        else:
            num_unseen = sum(i not in train_ids for i in present)
            assert found.unseen_share == pytest.approx(num_unseen / len(present))
            assert 0 < found.drift.distance < 1


def test_drift_of_ids(statistics, rows):
    """Few ids: all have bins of their own, so the distance is that of the whole distributions."""
    for name in ("word", "price <bucket>"):
        counts = {split: Counter(rows[split][name]) for split in SPLITS}
        ids = sorted(counts["train"] | counts["test"])
        expected = jensenshannon(*([counts[s][i] for i in ids] for s in ("train", "test")), base=2)
        found = feature_of(statistics, name).splits["test"].drift
        assert found.distance == pytest.approx(expected)


def test_bags(statistics, rows):
    feature = feature_of(statistics, BAG)
    for split in SPLITS:
        lengths = np.array([len(bag) for bag in rows[split][BAG]])
        found = feature.splits[split].lengths
        assert (found.num_bags, found.maximum) == (len(lengths), lengths.max())
        assert found.mean == pytest.approx(lengths.mean())
        expected = np.quantile(lengths, LENGTH_QUANTILES, method="inverted_cdf")
        assert list(found.quantiles) == expected.tolist()
        counts = [int((lengths == n).sum()) for n in range(found.quantiles[-1] + 1)]
        assert list(found.counts) == counts
        weights = [w for bag in rows[split]["seen.weights"] for w in bag]
        assert feature.splits[split].weights.mean == pytest.approx(np.mean(weights))
    assert feature_of(statistics, "item").splits["train"].lengths is None


def test_top_ids_bear_their_raw_values(statistics, rows, folder):
    manifest = read_manifest(folder, DatasetManifest)
    for name in ("word", "item", BAG):
        feature = feature_of(statistics, name)
        column = rows["train"][name]
        ids = [i for bag in column for i in bag] if name == BAG else column
        counts = Counter(i for i in ids if i > 1)
        expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
        assert [one.id for one in feature.top] == [i for i, _ in expected]
        assert [one.shares["train"] for one in feature.top] == pytest.approx(
            [count / len(ids) for _, count in expected]
        )
        vocabulary = pa.ipc.open_file(
            folder / manifest.encoding.tables[feature.table].vocabulary
        ).read_all()
        values = vocabulary.column("value").to_pylist()
        assert [one.value for one in feature.top] == [values[i - 2] for i, _ in expected]
    assert all(one.value is None for one in feature_of(statistics, "user").top)


def test_tables_add_up_their_features(statistics, rows):
    table = next(t for t in statistics.tables if t.name == "item")
    assert table.features == ("item", BAG)
    counts = Counter(rows["train"]["item"])
    counts.update(i for bag in rows["train"][BAG] for i in bag)
    ranked = sorted(counts.values(), reverse=True)
    found = table.popularity
    assert (found.num_lookups, found.num_used_rows) == (sum(ranked), len(ranked))
    assert list(found.counts) == [ranked[rank - 1] for rank in found.ranks]
    hits = [sum(ranked[:rank]) / sum(ranked) for rank in found.ranks]
    assert list(found.hits) == pytest.approx(hits)
    together = statistics.popularity
    assert together.num_rows == sum(t.popularity.num_rows for t in statistics.tables)
    assert together.num_lookups == sum(t.popularity.num_lookups for t in statistics.tables)
    assert together.hits[-1] == pytest.approx(1)


def test_numbers(statistics, rows):
    for name in ("price", "age"):
        feature = feature_of(statistics, name, "dense")
        for split in SPLITS:
            column = np.array(rows[split][name])
            found = feature.splits[split]
            assert found.distribution.mean == pytest.approx(column.mean(), abs=1e-9)
            expected = np.quantile(column, QUANTILES, method="inverted_cdf")
            assert list(found.distribution.quantiles) == expected.tolist()
            is_fill = np.isclose(column, feature.fill, rtol=1e-6, atol=0)
            assert found.fill_share == pytest.approx(is_fill.mean())
            assert sum(found.histogram) == len(column)
            assert (found.drift is None) == (split == "train")
    # A missing price is 0, log1p(0) is 0, and no price in the log is 0.
    assert feature_of(statistics, "price", "dense").fill == 0


def test_drift_of_numbers(statistics, rows):
    train, test = (np.array(rows[split]["price"]) for split in ("train", "test"))
    deciles = np.unique(np.quantile(train, np.arange(1, 10) / 10, method="inverted_cdf"))
    counts = [
        [int(((low < x) & (x <= high)).sum()) for low, high in pairwise(edges)]
        for x in (train, test)
        for edges in [[-np.inf, *deciles, np.inf]]
    ]
    found = feature_of(statistics, "price", "dense").splits["test"].drift
    assert found.distance == pytest.approx(jensenshannon(*counts, base=2))


def test_a_constant_has_one_bar_and_little_drift(statistics):
    feature = feature_of(statistics, "constant", "dense")
    assert feature.edges == ()
    # One of the 120 test rows is 1, the 204 of train are all 0.
    assert feature.splits["test"].histogram == (120,)
    assert 0 < feature.splits["test"].drift.distance < 0.1
    assert feature.splits["validation"].drift.distance == 0


def test_histogram_bars(statistics, rows):
    feature = feature_of(statistics, "price", "dense")
    edges = [-np.inf, *feature.edges, np.inf]
    column = np.array(rows["train"]["price"], dtype=np.float32)
    expected = [int(((low < column) & (column <= high)).sum()) for low, high in pairwise(edges)]
    assert list(feature.splits["train"].histogram) == expected
    assert len(expected) == 40


def test_json_round_trip(statistics):
    text = msgspec.json.encode(statistics)
    assert b"Infinity" not in text
    assert msgspec.json.decode(text, type=DatasetStatistics) == statistics


def test_nothing_held_out(tmp_path):
    every_kind(tmp_path, split=NOTHING_HELD_OUT)
    statistics = dataset_statistics(tmp_path / "data")
    assert list(statistics.splits) == ["train"]
    assert statistics.splits["train"].num_rows == 360
    assert all(list(f.splits) == ["train"] for f in (*statistics.dense, *statistics.sparse))


def test_only_dense_and_only_sparse(tmp_path):
    every_kind(tmp_path / "dense", sparse=())
    only_dense = dataset_statistics(tmp_path / "dense" / "data")
    assert (only_dense.sparse, only_dense.tables, only_dense.popularity) == ((), (), None)
    every_kind(tmp_path / "sparse", dense=(), sparse=SPARSE[:3])
    only_sparse = dataset_statistics(tmp_path / "sparse" / "data")
    assert (only_sparse.dense, len(only_sparse.sparse)) == ((), 3)


def test_empty_bags(tmp_path):
    """Where no test row has an id there is nothing to compare, and nothing breaks."""
    every_kind(tmp_path, dense=DENSE[:1])
    folder = tmp_path / "data"
    path = folder / "test" / "part-00000.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
        table = table.to_pydict() | {BAG: [[]] * 120, "seen.weights": [[]] * 120}
        schema = pa.ipc.open_file(source).schema
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict(table, schema))
    _accept(folder, "test/part-00000.arrow")
    split = feature_of(dataset_statistics(folder), BAG).splits["test"]
    assert (split.num_ids, split.missing_share, split.unseen_share) == (0, 1, 0)
    assert (split.drift, split.weights, split.lengths.maximum) == (None, None, 0)


def test_a_part_of_other_columns_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    manifest = read_manifest(tmp_path / "data", DatasetManifest)
    renamed = DenseFeature(name="cost", column="cost", transform="log1p", fill=0.0)
    schema = msgspec.structs.replace(manifest.schema, dense=(renamed, *manifest.schema.dense[1:]))
    write_manifest(tmp_path / "data", msgspec.structs.replace(manifest, schema=schema))
    with pytest.raises(
        DataError, match=r"a part of 'train' has the columns .*price: float, .*cost: float"
    ):
        dataset_statistics(tmp_path / "data")


def test_manifests_without_counts_by_file(folder, tmp_path):
    """Datasets made before files were counted apart can be looked at."""
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / "manifest.json"
    head = msgspec.json.decode(path.read_bytes())
    for file in head["inputs"]:
        del file["num_positives"]
    path.write_bytes(msgspec.json.encode(head))
    inputs = dataset_statistics(tmp_path / "data").inputs
    assert [file.num_positives for file in inputs] == [None] * 3


def test_torch_is_not_imported(folder):
    code = (
        "import sys; from pathlib import Path; "
        "from fastdlrm.data.dataset_statistics import dataset_statistics; "
        f"dataset_statistics(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress(folder):
    seen = []
    dataset_statistics(folder, lambda stage, share: seen.append((stage, share)))
    assert seen[-1] == ("tables", 1.0)
    assert ("dense", 1.0) in seen


def _accept(folder, part):
    """Let the manifest say of a part what lies there."""
    manifest = read_manifest(folder, DatasetManifest)
    path = folder / part
    entry = msgspec.structs.replace(manifest.files[part], size_bytes=path.stat().st_size)
    files = manifest.files | {part: entry}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
