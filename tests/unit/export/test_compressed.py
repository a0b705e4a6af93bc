"""Compressed tables, exported: rows of what lies in memory in every precision, and as deltas."""

import dataclasses

import numpy as np
import pytest

from fastdlrm.contracts.delta import Delta
from fastdlrm.errors import ExportError
from fastdlrm.export.fresh_rows import write_fresh_rows
from fastdlrm.export.model import TABLES, ExportedModel
from fastdlrm.export.write import ExportOptions, export
from fastdlrm.model.predictor import Predictor
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_recipe

KEYS = (
    "model.compression={threshold_rows = 50, default = {kind = 'quotient_remainder'},"
    " tables = {C1 = {kind = 'hash', num_rows = 60},"
    " C2 = {kind = 'quotient_remainder', operation = 'concat'}}}"
)


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """Like `trained`, its tables compressed."""
    _, dataset = trained
    folder = tmp_path_factory.mktemp("compressed") / "run"
    run = Run.create(folder, tiny_recipe("train.max_steps=20", KEYS), dataset)
    Trainer(run, dataset).train()
    return run


@pytest.fixture
def compressed(source, run):
    """What is exported of it."""
    return dataclasses.replace(
        source, model=run.load_model("last"), config=run.recipe.model, vocabularies=run.folder
    )


@pytest.fixture
def model(compressed, tmp_path):
    """The float32 model, exported."""
    export(compressed, ExportOptions(name="ctr"), tmp_path / "model")
    return ExportedModel.load(tmp_path / "model")


@pytest.mark.parametrize("tables", ["fp32", "bf16", "int8", "int4"])
def test_every_precision_is_near(compressed, splits, tmp_path, tables):
    """In float32 `export` itself requires the run's logits in every bit."""
    options = ExportOptions(
        name="ctr", tables=tables, max_auc_drop=0.02, max_ne_rise=0.05, compare=tables == "fp32"
    )
    manifest = export(compressed, options, tmp_path / "model", **splits)
    plain, ours, *others = manifest.quality
    held = compressed.model.tables.state_tensors()
    assert plain.tables_bytes == sum(table.numel() for table in held.values()) * 4
    assert held["C2.quotient"].shape[1] == compressed.config.embedding_dim // 2
    assert ours.tables_bytes == (tmp_path / "model" / TABLES).stat().st_size
    assert (ours.max_logit_difference == 0) == (tables == "fp32")
    assert ours.max_logit_difference < 1
    if tables == "fp32":
        assert {quality.tables for quality in others} == {"fp32", "bf16", "int8", "int4"}


def test_a_delta_of_a_row_changes_all_ids_that_share_it(model, compressed):
    rows = model.warmup_rows()
    batch = model.encode(rows)
    before = model.predict(batch)
    name, index = "C5.quotient", [f.table for f in compressed.schema.sparse].index("C5")
    one = np.array([0])
    model.apply(Delta(name, one, np.full((1, 4), 0.5, np.float32), 1, 0.0))
    ids = batch.sparse.ids.view(batch.sparse.num_features, -1)[index].numpy()
    after = model.predict(batch)
    assert len(set(ids[ids < 4])) > 1
    assert ((before != after) == (ids < 4)).all()


def test_a_delta_names_what_lies_in_memory(model):
    delta = Delta("C1", np.array([0]), np.zeros((1, 4), np.float32), 1, 0.0)
    with pytest.raises(ExportError, match=r"no table 'C1'; C1.hash, .* are there"):
        model.apply(delta)


def test_deltas_are_the_model_trained_further(model, compressed, run):
    for table in compressed.model.tables.state_tensors().values():
        table[[0, 2]] += 0.25
    written = write_fresh_rows(model.folder, run.manifest, compressed.model)
    assert len(written) == len(compressed.model.tables.num_embeddings)
    assert model.apply_deltas() == len(written)
    batch = model.encode(model.warmup_rows())
    expected = Predictor(compressed.model.eval())(batch.dense, batch.sparse)
    assert np.array_equal(model.logits(batch).numpy(), expected.numpy())


def test_one_onnx_file_cannot_hold_them(compressed, tmp_path):
    options = ExportOptions(name="ctr", onnx_model=True)
    with pytest.raises(ExportError, match=r"compressed tables cannot be written into it; export"):
        export(compressed, options, tmp_path / "model")
    assert not (tmp_path / "model").exists()
