import re

import numpy as np
import pytest
import torch

from fastdlrm.config import load_config
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.random import RandomBatches, RandomShape
from fastdlrm.data.random_dataset import DRAW_ROWS, Traces, write_random
from fastdlrm.data.trace import Profiler
from fastdlrm.data.trace_file import write_profile
from fastdlrm.errors import ConfigError, DataError
from fastdlrm.train.recipe import Recipe

ROWS = {"train": DRAW_ROWS + 100, "validation": 0, "test": 700}


def _recipe(*overrides):
    return load_config("random", Recipe, overrides)


def _write(folder, rows=ROWS, *, seed=1, overrides=(), **settings):
    recipe = _recipe(*overrides)
    write_random(folder, recipe.data, recipe.random, rows, seed=seed, **settings)
    return Dataset.open(folder, deep=True)


def test_a_dataset_holds_the_batches(tmp_path):
    dataset = _write(tmp_path / "data")
    assert set(dataset.manifest.splits) == {"train", "test"}
    recipe = _recipe()
    shape = RandomShape.of(recipe.data.schema(), recipe.random)
    for split, info in dataset.manifest.splits.items():
        batches = RandomBatches(
            shape=shape, batch_size=DRAW_ROWS, seed=1, split=split, device=torch.device("cpu")
        )
        rows = dataset.split(split)
        assert len(rows) == info.num_rows == ROWS[split]
        positives = 0
        for index, batch in enumerate(rows.batches(DRAW_ROWS)):
            expected = batches[index].slice(0, batch.num_samples)
            assert torch.equal(batch.dense, expected.dense)
            assert torch.equal(batch.labels, expected.labels)
            assert torch.equal(batch.sparse.ids, expected.sparse.ids)
            assert torch.equal(batch.sparse.lengths, expected.sparse.lengths)
            positives += int(batch.labels.sum())
        assert info.num_positives == positives


def test_splits_share_no_row_and_no_id_is_beyond_its_table(tmp_path):
    """In the reference the test set is the train set, and Gaussian ids exceed small tables."""
    dataset = _write(tmp_path / "data", overrides=["random.sparse.1.std=3.0"])
    train, test = (
        {tuple(row) for batch in dataset.split(name).batches(5000) for row in batch.dense.tolist()}
        for name in ("train", "test")
    )
    assert len(train) + len(test) == ROWS["train"] + ROWS["test"]
    assert not train & test
    tables = dataset.manifest.encoding.tables
    for split in ("train", "test"):
        for rows in dataset.record_batches(split):
            for feature in dataset.schema.sparse:
                column = rows.column(feature.name)
                ids = (column.flatten() if feature.bag else column).to_numpy()
                assert ids.max() < tables[feature.table].num_embeddings


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, again, other = (
        _write(tmp_path / name, seed=seed).manifest.files
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first == again
    assert set(first) == set(other)
    assert all(first[name] != other[name] for name in first)


def test_ids_take_the_smallest_type(tmp_path):
    (rows, *_) = _write(tmp_path / "data").record_batches("test")
    assert str(rows.schema.field("C5").type) == "uint16"
    assert str(rows.schema.field("C1").type) == "uint32"
    assert str(rows.schema.field("C8").type.value_type) == "uint32"


@pytest.mark.parametrize(("encoding", "first_id"), [("identity", 0), ("hash", 2)])
def test_tables_have_the_rows_of_the_config(tmp_path, encoding, first_id):
    dataset = _write(tmp_path / "data", overrides=[f"data.sparse.1.encoding={encoding}"])
    table = dataset.manifest.encoding.tables["C5"]
    assert (table.num_embeddings, table.first_id, table.vocabulary) == (1000, first_id, "")


def test_rows_are_reported_as_they_are_drawn(tmp_path):
    seen = []
    _write(tmp_path / "data", progress=seen.append)
    assert seen == [DRAW_ROWS, 100, 700]


@pytest.mark.parametrize("rows", [{"train": 0, "test": 5}, {"test": 5}, {"train": 5, "test": -1}])
def test_rows_must_be_drawn(tmp_path, rows):
    with pytest.raises(ConfigError, match=r"random data: rows {.*}; 1 or more of train"):
        _write(tmp_path / "data", rows)


def test_a_seed_has_64_bits(tmp_path):
    with pytest.raises(ConfigError, match=r"seed is -1; 0 \.\. 2\*\*64 - 1 is allowed"):
        _write(tmp_path / "data", seed=-1)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").touch()
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        _write(tmp_path / "data")


# Ids from traces.


def _profiles(folder, num_features=8, largest=50):
    draw = np.random.default_rng(1)
    paths = []
    for j in range(num_features):
        profiler = Profiler()
        profiler.add(np.append(draw.integers(0, 50, 2000), largest).astype(np.uint64))
        paths.append(folder / f"C{j}_{j}.log")
        write_profile(paths[-1], profiler.profile())
    return paths


def _traced(folder, rows=ROWS, **settings):
    paths = _profiles(folder, **settings)
    return _write(folder / "data", rows, traces=Traces(paths=paths, rule="deferred"))


def test_ids_follow_their_traces_through_all_splits(tmp_path):
    """A bag feature's trace is its bags, one after the other; no row begins it anew."""
    rows = {"train": 900, "validation": 100, "test": 200}
    dataset = _traced(tmp_path, rows)
    assert len(dataset.manifest.inputs) == 8
    for place, feature in ((0, "C1"), (6, "C7")):
        ids = [
            (c.flatten() if feature == "C7" else c).to_numpy()
            for split in rows
            for batch in dataset.record_batches(split)
            for c in [batch.column(feature)]
        ]
        trace = np.concatenate(ids).astype(np.uint64)
        assert len(trace) == (1200 if place == 0 else 12_000)
        profiler = Profiler()
        profiler.add(trace)
        found = profiler.profile()
        # Uniform over about 50 ids: the mean distance is about 25, that of restarted samples of
        # one id each would be 0.
        assert found.mean_distance == pytest.approx(25, abs=2)
        assert 48 <= len(found.ids) <= 51


def test_features_have_traces_of_their_own(tmp_path):
    """Equal profiles, other numbers: C1 and C2 are not copies of each other."""
    path = _profiles(tmp_path, 1)[0]
    copies = []
    for j in range(8):
        copies.append(tmp_path / f"same_{j}.log")
        copies[-1].write_bytes(path.read_bytes())
    dataset = _write(tmp_path / "data", traces=Traces(paths=copies, rule="paper"))
    (rows, *_) = dataset.record_batches("train")
    first, second = (rows.column(name).to_numpy() for name in ("C1", "C2"))
    assert (first == second).mean() < 0.1


def test_every_feature_needs_a_profile(tmp_path):
    with pytest.raises(ConfigError, match="--profile: 3 profiles for 8 sparse features; one each"):
        _traced(tmp_path, num_features=3)


def test_an_id_beyond_its_table_is_refused(tmp_path):
    message = r"C0_0\.log line 1: id 100000 >= max_rows 100000 of the table of feature 'C1'; raise"
    with pytest.raises(DataError, match=re.escape(str(tmp_path)) + "/" + message):
        _traced(tmp_path, largest=100_000)
