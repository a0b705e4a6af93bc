"""Bags from a log to requests: weights of the data, learned weights, sums and means."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.contracts.delta import read_delta
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.data.dataset import Dataset
from fastdlrm.export.fresh_rows import write_fresh_rows
from fastdlrm.export.model import TABLES, ExportedModel, request_inputs
from fastdlrm.export.request_encoder import RequestEncoder
from fastdlrm.export.tables import map_stacks, plain_rows
from fastdlrm.export.write import ExportOptions, export
from fastdlrm.model.predictor import Predictor
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests import oracles
from tests.builders import tiny_recipe
from tests.every_kind import every_kind

SETTINGS = (
    "model.weighted_pooling='learned'",
    "model.table_pooling={item='mean'}",
    "model.norm='layer'",
    "train.max_steps=30",
    "train.global_batch_size=32",
    "train.num_epochs=10",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose table of items is shared by single ids and weighted bags, and its dataset."""
    folder = tmp_path_factory.mktemp("pooling")
    every_kind(folder)
    dataset = Dataset.open(folder / "data")
    run = Run.create(folder / "run", tiny_recipe(*SETTINGS), dataset)
    Trainer(run, dataset).train()
    return run, dataset


@pytest.fixture
def learned(trained):
    """The tables as training left them, and their pooling weights."""
    run, _ = trained
    model = run.build_model()
    store.load_into(run.checkpoint_folder("last"), {"model": model.state_tensors()})
    return model.eval()


def rows_of_test(trained):
    _, dataset = trained
    rows = dataset.split("test")
    return rows.batch(slice(0, len(rows)))


def test_weights_are_learned_and_folded_into_the_rows(trained, source, learned):
    stacked = learned.tables.pooling_weight.detach()
    assert (stacked != 1).any()
    assert (stacked - 1).abs().max() > 0.01
    folded = source.model.tables
    assert folded.pooling_weights() == {}
    for name, weights in learned.tables.pooling_weights().items():
        exact = learned.tables.table(name).numpy() * weights.numpy()[:, None]
        np.testing.assert_array_equal(folded.table(name), exact)
    batch = rows_of_test(trained)
    # two products of a row are rounded instead of one: 2^-24 of each number
    with torch.no_grad():
        logits = learned(batch.dense, batch.sparse), source.model(batch.dense, batch.sparse)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_pooled_vectors_by_a_slow_reference(trained, source, learned):
    """Of a bag, the sum of given weight * learned weight * row; for items over its size."""
    batch, schema = rows_of_test(trained), trained[0].manifest.schema
    sparse, B = batch.sparse, batch.num_samples
    offsets, found = sparse.offsets().tolist(), source.model.tables(sparse).detach()
    assert len(set(sparse.lengths.tolist())) > 3
    for f, feature in enumerate(schema.sparse):
        spans = [slice(*offsets[f * B + b : f * B + b + 2]) for b in range(B)]
        bags = [sparse.ids[span].tolist() for span in spans]
        weights = learned.tables.pooling_weights()[feature.table].tolist()
        factors = [
            [
                given * weights[row]
                for given, row in zip(sparse.weights[span].tolist(), bag, strict=True)
            ]
            for span, bag in zip(spans, bags, strict=True)
        ]
        rows = learned.tables.table(feature.table).double().numpy()
        rule = "mean" if feature.table == "item" else "sum"
        expected = oracles.pooled_lookup(rows, bags, factors, rule)
        np.testing.assert_allclose(found[:, f], expected, rtol=1e-5, atol=1e-6)


def test_rows_and_requests_score_as_predict_in_every_bit(trained, source, tmp_path):
    """`export` itself compares the golden rows and the test split."""
    _, dataset = trained
    manifest = export(
        source, ExportOptions(name="ctr"), tmp_path / "model", test=dataset.split("test")
    )
    assert manifest.quality[1].max_logit_difference == 0
    model = ExportedModel.load(tmp_path / "model")
    batch = rows_of_test(trained)
    expected = Predictor(source.model.eval())(batch.dense, batch.sparse)
    assert torch.equal(model.logits(batch), expected)
    assert torch.equal(model.logits(batch.slice(7, 10)), expected[7:10])
    rows = model.warmup_rows().slice(0, 50)
    encoded = model.encoder.encode(request_inputs(rows), 0, 50)
    assert np.array_equal(model.predict(RequestEncoder.join([encoded])), model.predict_raw(rows))


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_folded_rows_are_what_is_rounded(source, learned, tmp_path, dtype):
    """A weight goes into a row's scale: its codes are no coarser for it."""
    manifest = export(source, ExportOptions(name="ctr", tables=dtype), tmp_path / "model")
    sizes, dim = source.model.tables.num_embeddings, source.config.embedding_dim
    shapes = [(sum(sizes.values()), dim)]
    (stored,) = map_stacks(tmp_path / "model" / TABLES, shapes, manifest.table_dtype)
    weights = learned.tables.pooling_weight.detach().unsqueeze(1)
    exact = learned.tables.weight.detach() * weights
    largest, span = exact.abs().amax(1), exact.amax(1) - exact.amin(1)
    # a step; that of few bits is rounded up to bfloat16
    bound = {"bf16": largest / 128, "int8": largest / 127, "int4": span / 15 + largest / 128}[dtype]
    error = (plain_rows(stored, manifest.table_dtype) - exact).abs().amax(1)
    assert error.max() > 0
    assert (error <= bound / 2 * (1 + 2**-7)).all()


def test_a_weight_that_moves_is_a_fresh_row(trained, source, learned, tmp_path):
    export(source, ExportOptions(name="ctr"), tmp_path / "model")
    with torch.no_grad():
        learned.tables.pooling_weight[3] *= 2
    learned.tables.fold_weights()
    (path,) = write_fresh_rows(tmp_path / "model", trained[0].manifest, learned)
    delta = read_delta(path)
    table = next(iter(source.model.tables.num_embeddings))
    assert (delta.table, delta.ids.tolist()) == (table, [3])
    expected = 2 * source.model.tables.table(table)[3]
    np.testing.assert_allclose(delta.rows[0], expected, rtol=1e-6)


def test_what_the_weights_of_rows_and_requests_mean(source, tmp_path):
    """Of `seen`, averaged: 0 drops an id's row, not its share; the rest is worked from one row."""
    export(source, ExportOptions(name="ctr"), tmp_path / "model")
    model = ExportedModel.load(tmp_path / "model")
    rows = model.warmup_rows().slice(0, 4)
    seen = [["3", "5"], ["3", "5"], ["3", "3"], ["3"]]
    dwell = [["0.5", "0"], ["0", "0"], ["2", "-1"], ["0.25"]]
    columns = {name: rows.column(name).take(pa.array([0] * 4)) for name in rows.schema.names}
    columns |= {"seen": pa.array(seen), "dwell": pa.array(dwell)}
    rows = pa.RecordBatch.from_pydict(columns)
    batch = model.encode(rows)
    pooled = source.model.tables(batch.sparse).detach()
    f = [feature.name for feature in model.manifest.schema.sparse].index("seen")
    first = batch.sparse.offsets()[f * 4]
    row = source.model.tables.table("item")[batch.sparse.ids[first]]
    # 0.5 / 2, 0 / 2, (2 - 1) / 2 and 0.25 / 1 of the row
    expected = row * torch.tensor([[0.25], [0], [0.5], [0.25]])
    torch.testing.assert_close(pooled[:, f], expected)
    scores = model.predict_raw(rows)
    assert scores[0] == scores[3] != scores[1]
    sparse = batch.sparse
    encoded = {
        "dense": batch.dense,
        "ids": sparse.ids,
        "lengths": sparse.lengths.view(-1, 4),
        "weights": sparse.weights,
    }
    tensors = {name: WireTensor.from_array(x.numpy()) for name, x in encoded.items()}
    for inputs in (request_inputs(rows), tensors):
        part = model.encoder.encode(inputs, 0, 4)
        assert np.array_equal(model.predict(RequestEncoder.join([part])), scores)
