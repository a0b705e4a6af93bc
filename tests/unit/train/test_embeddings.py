"""A planted table: two clusters of rows, one row that never moved, one far out."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.errors import CheckpointError, ConfigError
from fastdlrm.model import embedding
from fastdlrm.train.embeddings import Wanted, embedding_statistics
from fastdlrm.train.run import Run
from tests.builders import invoke, tiny_dataset, tiny_recipe

STILL = 19
"""Row of C1 that is as it was drawn, and none of the most frequent."""


SPARSE = (
    "data.sparse=[{columns=['C1', 'C2'], key='hex', min_count=2}, "
    "{columns=['C9'], key='hex', encoding='hash', max_rows=100}]"
)
"""C9 has rows by hash, which keep no values, and most of which are of no value."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), 2000, SPARSE)


@pytest.fixture(scope="module")
def planted(dataset, tmp_path_factory):
    """A run whose C1 has rows around +c where the row is even and around -c where it is odd."""
    run = Run.create(tmp_path_factory.mktemp("run"), tiny_recipe("model.init=normal"), dataset)
    model = run.build_model()
    table = model.tables.table("C1")
    still = table[STILL].clone()
    signs = torch.where(torch.arange(len(table)) % 2 == 0, 1.0, -1.0)[:, None]
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    table.copy_(signs * torch.tensor([3.0, -1.0, 2.0, 0.5]) + 0.2 * noise)
    table[STILL] = still
    store.save(run.checkpoints, 7, {"model": model.state_tensors()}, {"best_step": 7}, {})
    return run.folder, table.numpy().copy()


@pytest.fixture(scope="module")
def found(planted, dataset):
    statistics = embedding_statistics(planted[0], dataset.folder, Wanted(near={}))
    assert [table.name for table in statistics.tables] == ["C1", "C2", "C9"]
    return statistics


@pytest.fixture(scope="module")
def counts(dataset):
    """Lookups in train of C1, by numpy."""
    ids = np.concatenate([part["C1"].to_numpy() for part in dataset.record_batches("train")])
    return np.bincount(ids, minlength=dataset.manifest.encoding.tables["C1"].num_embeddings)


def vocabulary(dataset):
    with pa.OSFile(str(dataset.folder / "vocab" / "C1.arrow")) as file:
        return pa.ipc.open_file(file).read_all()["value"].to_pylist()


def test_norms(found, planted, counts):
    table, norms = found.tables[0], np.linalg.norm(planted[1].astype(np.float64), axis=1)
    assert table.norm_mean == pytest.approx(norms.mean(), rel=1e-6)
    # the 50th percentile is the value at place ceil(n / 2), counted from 1
    middle = np.sort(norms)[-(-len(norms) // 2) - 1]
    assert table.norm_percentiles[3] == pytest.approx(middle, rel=1e-6)
    assert table.norm_edges[-1] == pytest.approx(norms.max(), rel=1e-6)
    assert sum(table.norm_seen) == (counts > 0).sum()
    assert sum(table.norm_unseen) == (counts == 0).sum() == table.num_unseen
    ones = [group for group in table.norms_by_count if group.least == 2]
    chosen = np.sort(norms[(counts >= 2) & (counts <= 3)])
    assert [(group.most, group.num_rows) for group in ones] == [(3, len(chosen))]
    assert ones[0].p90 == pytest.approx(chosen[-(-len(chosen) * 9 // 10) - 1], rel=1e-6)


def test_dead_rows(found, counts):
    moved, still, hashed = found.tables
    assert counts[STILL] > 0
    assert (moved.num_unmoved, moved.num_seen_unmoved) == (1, 1)
    # the untouched tables: all rows are as they were drawn, many of C9 are of no value
    assert still.num_unmoved == still.num_rows
    assert hashed.num_unmoved == hashed.num_rows == 100
    assert hashed.num_unseen > 90
    assert hashed.num_seen_unmoved == 100 - hashed.num_unseen


def test_rows_of_half_the_lookups(found, counts):
    descending = np.cumsum(np.sort(counts)[::-1])
    for share, number in zip((0.5, 0.9, 0.99), found.tables[0].rows_for_lookups, strict=True):
        assert descending[number - 1] >= share * counts.sum() > descending[number - 2]


def test_neighbours_are_of_the_same_cluster(found, planted, counts, dataset):
    values = vocabulary(dataset)
    unit = planted[1] / np.linalg.norm(planted[1], axis=1, keepdims=True)
    assert len(found.tables[0].neighbours) == 5
    for query in found.tables[0].neighbours:
        row = query.of.row
        assert (query.of.value, query.of.count) == (values[row - 2], counts[row])
        assert {one.row.row % 2 for one in query.nearest} == {row % 2}
        cosines = unit @ unit[row]
        cosines[[0, 1, row]] = -2  # reserved rows stand aside, and the row itself
        cosines[counts == 0] = -2
        best = np.argsort(-cosines)[:8]
        assert [one.row.row for one in query.nearest] == best.tolist()
        assert [one.row.value for one in query.nearest] == [values[i - 2] for i in best]
        np.testing.assert_allclose([one.cosine for one in query.nearest], cosines[best], rtol=1e-5)


def test_the_projection_shows_the_clusters(found, planted, counts):
    projection = found.tables[0].projection
    sides = {
        parity: [
            x > 0
            for row, x in zip(projection.rows, projection.x, strict=True)
            if row.row % 2 == parity and row.row != STILL
        ]
        for parity in (0, 1)
    }
    assert len(set(sides[0])) == len(set(sides[1])) == 1
    assert sides[0][0] is not sides[1][0]
    # against singular vectors of the centred rows
    seen = planted[1][counts > 0].astype(np.float64)
    _, singular, axes = np.linalg.svd(seen - seen.mean(0))
    shares = singular**2 / (singular**2).sum()
    np.testing.assert_allclose(projection.explained, shares[:2], rtol=1e-6)
    assert projection.explained[0] > 0.9
    rows = [row.row for row in projection.rows]
    assert [row.count for row in projection.rows] == sorted(counts[rows], reverse=True)
    wanted = (planted[1][rows] - seen.mean(0)) @ axes[:2].T
    for number, got in enumerate((projection.x, projection.y)):
        np.testing.assert_allclose(np.abs(got), np.abs(wanted[:, number]), rtol=1e-4, atol=1e-5)


def test_slices_change_nothing(found, planted, dataset, monkeypatch):
    """Runs of 16 rows: drawn again they are what was drawn at once."""
    monkeypatch.setattr(embedding, "DRAWN_NUMBERS", 64)
    sliced = embedding_statistics(planted[0], dataset.folder, Wanted(near={}))
    for one, other in zip(sliced.tables, found.tables, strict=True):
        for name in ("num_unmoved", "norm_percentiles", "norms_by_count", "neighbours"):
            assert getattr(one, name) == getattr(other, name)
        assert one.projection.x == pytest.approx(other.projection.x, abs=1e-9)


def test_values_and_tables_that_are_asked_for(planted, dataset):
    value = vocabulary(dataset)[5]  # row 7
    wanted = Wanted(tables=["C1", "C9"], near={"C1": [value], "C9": ["3"]}, num_neighbours=2)
    first, hashed = embedding_statistics(planted[0], dataset.folder, wanted).tables
    assert [(q.of.row, q.of.value, len(q.nearest)) for q in first.neighbours] == [(7, value, 2)]
    assert [(q.of.row, q.of.value) for q in hashed.neighbours] == [(3, None)]
    assert hashed.num_unmoved == 100, "C2, left out, is drawn all the same"


@pytest.mark.parametrize(
    ("tables", "near", "message"),
    [
        (["C8"], {}, "no table 'C8'; the run has C1, C2, C9"),
        ([], {"C8": ["1"]}, "no table 'C8'"),
        ([], {"C1": ["zz"]}, "table 'C1': no value 'zz' in its vocabulary; name one as the raw"),
        (
            [],
            {"C9": ["100"]},
            r"table 'C9': '100'; its encoding keeps .*: a row of 0 \.\. 99",
        ),
        ([], {"C9": ["zz"]}, "table 'C9': 'zz'; its encoding keeps no values"),
    ],
)
def test_what_is_not_there_is_told(planted, dataset, tables, near, message):
    with pytest.raises(ConfigError, match=message):
        embedding_statistics(planted[0], dataset.folder, Wanted(tables=tables, near=near))


def test_a_checkpoint_of_another_model(dataset, tmp_path):
    run = Run.create(tmp_path / "run", tiny_recipe(), dataset)
    store.save(run.checkpoints, 7, {"model": {"x": torch.ones(1)}}, {"best_step": 7}, {})
    with pytest.raises(CheckpointError, match=r"no tensor model/tables\.C1; it is of"):
        embedding_statistics(tmp_path / "run", dataset.folder, Wanted(near={}))


def test_the_command(planted, dataset, tmp_path):
    command = ("embeddings", "--run", planted[0], "--data", dataset.folder, "--out", tmp_path / "e")
    value = vocabulary(dataset)[5]
    told = json.loads(invoke(*command, "--near", f"C1={value}", "--table", "C1", "--json"))
    assert [table["name"] for table in told["tables"]] == ["C1"]
    assert f"### {value} (" in (tmp_path / "e" / "report.md").read_text()
    assert "Projection: C1" in (tmp_path / "e" / "report.html").read_text()
    with pytest.raises(ConfigError, match="--near 'C1': expected TABLE=VALUE"):
        invoke(*command, "--near", "C1")


def test_learned_weights_are_in_the_rows(dataset, tmp_path):
    recipe = tiny_recipe("model.init=normal", "model.weighted_pooling=learned")
    run = Run.create(tmp_path / "run", recipe, dataset)
    model = run.build_model()
    weights = model.tables.pooling_weights()["C1"]
    weights[4:6] = torch.tensor([3.0, -0.5])
    store.save(run.checkpoints, 7, {"model": model.state_tensors()}, {"best_step": 7}, {})
    first, second, _ = embedding_statistics(
        tmp_path / "run", dataset.folder, Wanted(near={})
    ).tables
    assert first.num_unmoved == first.num_rows - 2
    assert second.num_unmoved == second.num_rows
    norms = (model.tables.table("C1") * weights[:, None]).norm(dim=1)
    assert first.norm_mean == pytest.approx(float(norms.mean()), rel=1e-5)


def test_compressed_tables_are_looked_at_id_by_id(dataset, tmp_path):
    """A row of the quotients is part of 4 ids' vectors: they move, and no other."""
    compression = (
        "model.compression={tables={C1={kind='quotient_remainder', num_collisions=4}, "
        "C2={kind='hash', num_rows=20}, "
        "C9={kind='quotient_remainder', operation='concat', num_collisions=5}}}"
    )
    recipe = tiny_recipe("model.init=normal", compression)
    run = Run.create(tmp_path / "run", recipe, dataset)
    state = run.build_model().state_tensors()
    quotients, remainders = state["tables.C1.quotient"], state["tables.C1.remainder"]
    quotients[3] += 1
    store.save(run.checkpoints, 7, {"model": state}, {"best_step": 7}, {})
    first, second, third = embedding_statistics(
        tmp_path / "run", dataset.folder, Wanted(near={})
    ).tables
    sizes = dataset.manifest.encoding.tables
    assert first.num_rows == sizes["C1"].num_embeddings
    assert first.num_unmoved == first.num_rows - 4
    assert second.num_unmoved == second.num_rows == sizes["C2"].num_embeddings
    # each vector is a quotient's row beside a remainder's, half as wide each
    assert (third.num_rows, third.num_unmoved, third.embedding_dim) == (100, 100, 4)
    ids = torch.arange(100)
    halves = state["tables.C9.quotient"][ids // 5], state["tables.C9.remainder"][ids % 5]
    assert third.norm_mean == pytest.approx(
        float(torch.cat(halves, 1).norm(dim=1).mean()), rel=1e-5
    )
    rows = torch.arange(first.num_rows)
    norms = (quotients[rows // 4] * remainders[rows % 4]).norm(dim=1)
    assert first.norm_mean == pytest.approx(float(norms.mean()), rel=1e-5)
    for query in first.neighbours:
        assert query.of.norm == pytest.approx(float(norms[query.of.row]), rel=1e-5)
