"""The model as one ONNX file: logits of encoded batches, bags too, and what is refused."""

import numpy as np
import pytest

from fastdlrm.data.config import SourceConfig
from fastdlrm.errors import ExportError
from fastdlrm.export.model import ExportedModel
from fastdlrm.export.onnx_model import FILE, onnx_inputs, require_close, require_small
from fastdlrm.export.programs import onnx_session
from fastdlrm.export.write import ExportOptions, Source, export
from fastdlrm.model.build import build_dlrm
from fastdlrm.model.config import ModelConfig
from tests.every_kind import DENSE, SPARSE, every_kind
from tests.unit.export.test_programs import has_onnx

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # torch's exporters warn of themselves
    pytest.mark.skipif(not has_onnx(), reason="needs the extra `onnx`"),
]


def score(model, batch):
    """Logits by the file alone, shape (B,)."""
    session = onnx_session(model.folder / FILE)
    (logits,) = session.run(None, onnx_inputs(model.manifest.schema, batch))
    return logits


@pytest.mark.parametrize("tables", ["fp32", "int8"])
def test_logits_are_the_exported_models(source, tmp_path, tables):
    options = ExportOptions(name="ctr", tables=tables, onnx_model=True)
    manifest = export(source, options, tmp_path / "model")
    assert manifest.onnx_model is not None
    assert manifest.onnx_model.inputs == ("dense", "ids")
    assert manifest.onnx_model.max_logit_difference < 1e-5
    assert [path.name for path in (tmp_path / "model").glob("*.onnx*")] == [FILE]
    model = ExportedModel.load(tmp_path / "model")  # its checksum is in the manifest
    rows = model.warmup_rows()
    for size in (1, 2, 100):
        batch = model.encode(rows.slice(3, size))
        np.testing.assert_allclose(score(model, batch), model.logits(batch), atol=1e-5)


def test_narrow_tables(narrow, tmp_path):
    manifest = export(narrow, ExportOptions(name="ctr", onnx_model=True), tmp_path / "model")
    assert manifest.onnx_model.max_logit_difference < 1e-5
    model = ExportedModel.load(tmp_path / "model")
    batch = model.encode(model.warmup_rows().slice(3, 20))
    np.testing.assert_allclose(score(model, batch), model.logits(batch), atol=1e-5)


def untrained(folder, config, **features):
    """Something to export of the dataset with features of every kind."""
    data = every_kind(folder, **features)
    return Source(
        model=build_dlrm(config, data.schema, data.encoding, seed=1),
        config=config,
        schema=data.schema,
        encoding=data.encoding,
        vocabularies=folder / "data",
        source=SourceConfig(format="parquet"),
        matmul="default",
        step=0,
        run_sha256="",
    )


@pytest.mark.parametrize(
    ("pooling", "tables", "dims"),
    [
        ({"pooling": "sum"}, "fp32", {}),
        ({"pooling": "mean"}, "bf16", {}),
        ({"pooling": "mean", "table_pooling": {"word": "sum"}}, "fp32", {"item": 3, "word": 1}),
    ],
)
def test_weighted_bags(tmp_path, pooling, tables, dims):
    shape = {"embedding_dim": 4, "bottom_mlp": (4,), "top_mlp": (8,), **pooling}
    shape |= {"table_dims": dims, "table_projection": bool(dims)}
    config = ModelConfig(**shape, norm="layer", init="normal", embedding_std=1.0)
    source = untrained(tmp_path, config)
    options = ExportOptions(name="ctr", tables=tables, onnx_model=True)
    manifest = export(source, options, tmp_path / "model")
    assert manifest.onnx_model.inputs == ("dense", "ids", "lengths", "weights")
    model = ExportedModel.load(tmp_path / "model")
    rows = model.warmup_rows()
    for size in (1, 2, 50):
        batch = model.encode(rows.slice(7, size))
        assert batch.sparse.lengths.view(5, size)[0].tolist() == [1] * size
        np.testing.assert_allclose(
            score(model, batch), model.logits(batch), atol=1e-5 if tables == "fp32" else 0.05
        )


@pytest.mark.parametrize(
    ("dense", "sparse", "inputs"),
    [(DENSE, (), ("dense",)), ((), SPARSE[2:4], ("ids",)), ((), SPARSE[1:2], None)],
)
def test_features_of_one_sort_alone(tmp_path, dense, sparse, inputs):
    bottom = (4,) if dense else ()
    config = ModelConfig(embedding_dim=4, bottom_mlp=bottom, top_mlp=(8,), interaction="cat")
    source = untrained(tmp_path, config, dense=dense, sparse=sparse)
    manifest = export(source, ExportOptions(name="ctr", onnx_model=True), tmp_path / "model")
    assert manifest.onnx_model.inputs == (inputs or ("ids", "lengths", "weights"))
    model = ExportedModel.load(tmp_path / "model")
    batch = model.encode(model.warmup_rows().slice(0, 3))
    np.testing.assert_allclose(score(model, batch), model.logits(batch), atol=1e-5)


def test_an_id_outside_its_table_is_an_error(source, tmp_path):
    export(source, ExportOptions(name="ctr", onnx_model=True), tmp_path / "model")
    model = ExportedModel.load(tmp_path / "model")
    schema, encoding = model.manifest.schema, model.manifest.encoding
    batch = model.encode(model.warmup_rows().slice(0, 2))
    inputs = onnx_inputs(schema, batch)
    session = onnx_session(tmp_path / "model" / FILE)
    first = encoding.tables[schema.sparse[0].table].num_embeddings
    for wrong in (-1, first):  # of the first table; the next one's first row is no answer
        inputs["ids"][1, 0] = wrong
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, inputs)


def test_tables_beyond_an_onnx_file_are_refused():
    require_small(2_000_000_000)
    with pytest.raises(ExportError, match=r"2.56 GB in float32, one ONNX file holds 2 GB; export"):
        require_small(2_560_000_000)


def test_other_logits_are_refused():
    require_close(1e-5, "fp32")
    with pytest.raises(ExportError, match=r"differs by 0.01 from the exported model's, 0.0001 is"):
        require_close(0.01, "int8")
    with pytest.raises(ExportError, match="differs by nan"):
        require_close(float("nan"), "bf16")


def test_other_mlps_are_refused(source, tmp_path):
    with pytest.raises(ExportError, match="--onnx-model with MLPs of bf16: the ONNX file is of"):
        export(source, ExportOptions(name="ctr", mlp="bf16", onnx_model=True), tmp_path / "model")
