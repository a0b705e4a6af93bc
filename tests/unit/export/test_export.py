"""Exported models: scores of the run, precisions, refusals, damage, deltas."""

import dataclasses
import json
import shutil

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from fastdlrm.contracts.delta import Delta
from fastdlrm.contracts.exported import SCORE
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.errors import DataError, ExportError
from fastdlrm.export.model import MLP, TABLES, ExportedModel, request_inputs, write_rows
from fastdlrm.export.request_encoder import RequestEncoder
from fastdlrm.export.write import ExportOptions, export
from fastdlrm.metrics.logistic import logistic
from fastdlrm.model.build import build_dlrm
from fastdlrm.model.int8_mlp import has_int8_products
from fastdlrm.model.predictor import Predictor

needs_int8 = pytest.mark.skipif(not has_int8_products(), reason="this torch has no oneDNN")


@pytest.fixture
def model(source, tmp_path):
    """The float32 model, exported."""
    export(source, ExportOptions(name="ctr"), tmp_path / "model")
    return ExportedModel.load(tmp_path / "model")


def test_scores_are_the_runs_in_every_bit(source, splits, tmp_path):
    manifest = export(source, ExportOptions(name="ctr"), tmp_path / "model", **splits)
    model = ExportedModel.load(tmp_path / "model")
    rows = splits["test"]
    batch = rows.batch(slice(0, len(rows)))
    logits = Predictor(source.model.eval())(batch.dense, batch.sparse).numpy()
    expected = logistic(logits.astype(np.float64)).astype(np.float32)
    assert np.array_equal(model.predict(batch), expected)
    part = batch.slice(7, 10)
    assert np.array_equal(model.predict(part), expected[7:10])
    plain, ours = manifest.quality
    assert plain == msgspec.structs.replace(ours, tables="fp32", mlp="fp32")
    assert ours.max_logit_difference == 0
    assert ours.num_rows == len(rows)


def test_golden_rows_hold_missing_and_unseen_values(model):
    rows = model.golden()
    columns = [name for name in rows.schema.names if name != SCORE]
    assert any(rows.column(name).null_count for name in columns)
    batch = model.encode(rows.drop_columns([SCORE]))
    ids = batch.sparse.ids.view(batch.sparse.num_features, -1)
    assert (ids == 0).any()  # out of vocabulary
    assert (ids == 1).any()  # missing
    assert (ids > 1).any()


def test_requests_and_raw_rows_give_the_same(model):
    rows = model.warmup_rows().slice(0, 50)
    inputs = request_inputs(rows)
    encoded = model.encoder.encode(inputs, 0, 50)
    assert np.array_equal(model.predict(RequestEncoder.join([encoded])), model.predict_raw(rows))


@pytest.mark.parametrize("tables", ["bf16", "int8", "int4"])
def test_tables_in_fewer_bits_are_smaller_and_near(source, splits, tmp_path, tables):
    options = ExportOptions(name="ctr", tables=tables, max_auc_drop=0.02, max_ne_rise=0.05)
    manifest = export(source, options, tmp_path / "model", **splits)
    plain, ours = manifest.quality
    assert ours.tables_bytes == (tmp_path / "model" / TABLES).stat().st_size
    # D = 4: 16 bytes become 8; 4 codes and a scale, 6; 2 bytes of codes, scale and offset, 6
    assert source.config.embedding_dim == 4
    assert plain.tables_bytes * {"bf16": 8, "int8": 6, "int4": 6}[tables] == ours.tables_bytes * 16
    assert 0 < ours.max_logit_difference < 1
    ExportedModel.load(tmp_path / "model")


def test_narrow_tables_score_as_the_run_in_every_bit(narrow, splits, tmp_path):
    manifest = export(narrow, ExportOptions(name="ctr"), tmp_path / "model", **splits)
    plain, ours = manifest.quality
    assert ours.max_logit_difference == 0
    sizes = [t.numel() for t in narrow.model.tables.state_tensors().values()]
    assert plain.tables_bytes == 4 * sum(sizes) == (tmp_path / "model" / TABLES).stat().st_size
    model = ExportedModel.load(tmp_path / "model")
    rows = splits["test"]
    batch = rows.batch(slice(0, len(rows)))
    logits = Predictor(narrow.model.eval())(batch.dense, batch.sparse).numpy()
    expected = logistic(logits.astype(np.float64)).astype(np.float32)
    assert np.array_equal(model.predict(batch), expected)
    assert np.array_equal(model.predict(batch.slice(7, 10)), expected[7:10])


def test_narrow_tables_in_int8_are_near(narrow, splits, tmp_path):
    options = ExportOptions(name="ctr", tables="int8", max_auc_drop=0.05, max_ne_rise=0.05)
    manifest = export(narrow, options, tmp_path / "model", **splits)
    _, ours = manifest.quality
    shapes = [t.shape for t in narrow.model.tables.state_tensors().values()]
    assert ours.tables_bytes == sum(rows * (dim + 2) for rows, dim in shapes)
    assert ours.tables_bytes == (tmp_path / "model" / TABLES).stat().st_size
    assert 0 < ours.max_logit_difference < 0.1
    assert ExportedModel.load(tmp_path / "model").manifest.table_dtype == "int8"


def test_int4_takes_no_odd_width(narrow, tmp_path):
    with pytest.raises(ExportError, match=r"tables: int4 rows of 1 numbers: an even"):
        export(narrow, ExportOptions(name="ctr", tables="int4"), tmp_path / "model")


@needs_int8
def test_mlps_in_integers(source, splits, tmp_path):
    options = ExportOptions(name="ctr", mlp="int8", max_auc_drop=0.05, max_ne_rise=0.05)
    config = msgspec.structs.replace(source.config, top_mlp=(256, 200))
    model = build_dlrm(config, source.schema, source.encoding, seed=1)
    large = dataclasses.replace(source, config=config, model=model)
    manifest = export(large, options, tmp_path / "model", **splits)
    assert len(manifest.activation_ranges) == 1
    assert manifest.quality[1].max_logit_difference > 0
    ExportedModel.load(tmp_path / "model")
    with pytest.raises(ExportError, match=r"MLPs of int8: their ranges .* name the dataset with"):
        export(source, ExportOptions(name="ctr", mlp="int8"), tmp_path / "other")
    with pytest.raises(ExportError, match=r"MLPs of int8: no layer .* 32768 weights; .* use fp32"):
        export(source, options, tmp_path / "small", **splits)


def test_calibration_is_applied(source, splits, tmp_path):
    options = ExportOptions(name="ctr", calibrate="platt", negative_rate=0.5)
    manifest = export(source, options, tmp_path / "model", **splits)
    found = manifest.calibration
    assert found.kind == "platt"
    model = ExportedModel.load(tmp_path / "model")
    rows = splits["validation"]
    batch = rows.batch(slice(0, len(rows)))
    logits = model.logits(batch).numpy().astype(np.float64)
    moved = found.slope * (logits + np.log(0.5)) + found.intercept
    np.testing.assert_allclose(model.predict(batch), 1 / (1 + np.exp(-moved)), rtol=1e-6)
    assert model.predict(batch).mean() == pytest.approx(float(batch.labels.mean()), abs=0.01)


def test_a_precision_that_costs_too_much_is_refused(source, splits, tmp_path):
    for limits, words in (
        ({"max_auc_drop": -0.1}, r"AUC falls by .* on \d+ rows, -0.1 is allowed; .*--max-auc-drop"),
        ({"max_ne_rise": -0.1}, r"entropy rises by .*, -10.000% is allowed; .*--max-ne-rise"),
    ):
        options = ExportOptions(name="ctr", tables="int8", **limits)
        with pytest.raises(ExportError, match=r"tables int8, MLPs fp32: .*" + words):
            export(source, options, tmp_path / "model", **splits)
    assert not (tmp_path / "model").exists()


def test_refusals_before_anything_is_written(source, tmp_path):
    out = tmp_path / "model"
    with pytest.raises(ExportError, match=r"name 'a/b': letters, digits"):
        export(source, ExportOptions(name="a/b"), out)
    with pytest.raises(ExportError, match=r"calibration 'platt': .* name the dataset with --data"):
        export(source, ExportOptions(name="a", calibrate="platt"), out)
    with pytest.raises(ExportError, match=r"program 'onnx' with MLPs of bf16"):
        export(source, ExportOptions(name="a", mlp="bf16", program="onnx"), out)
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(ExportError, match=r"exists and is not an empty folder"):
        export(source, ExportOptions(name="a"), out)


def test_weights_that_are_no_numbers_are_not_quantised(source, tmp_path):
    with torch.no_grad():
        next(iter(source.model.tables.state_tensors().values()))[3, 0] = torch.nan
    with pytest.raises(ExportError, match=r"table '.*', rows from 0 on: row 3 holds NaN"):
        export(source, ExportOptions(name="ctr", tables="int8"), tmp_path / "model")


@pytest.mark.parametrize("name", [TABLES, MLP, "golden.arrow", "vocabularies.index"])
def test_damage_is_found(model, tmp_path, name):
    path = model.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ExportError, match=rf"{name}: its sha256 is not the manifest's"):
        ExportedModel.load(model.folder)
    path.write_bytes(content[:-1])
    with pytest.raises(ExportError, match=rf"{name}: .* bytes, the manifest says"):
        ExportedModel.load(model.folder, check=False)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"no manifest.json; a finished exported folder has one"):
        ExportedModel.load(tmp_path)


def test_a_model_of_an_older_layout_is_told(model):
    path = model.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 1}))
    with pytest.raises(ExportError, match=r"kind and version are \('exported', 1\), wanted"):
        ExportedModel.load(model.folder)


def test_weights_of_another_model_are_told(model):
    (model.folder / MLP).write_bytes(b"no weights")
    with pytest.raises(ExportError, match=r"mlp.safetensors: no weights: .*; export the model"):
        ExportedModel(model.folder, model.manifest, model.device)
    save_file({"other": torch.zeros(1)}, model.folder / MLP)
    with pytest.raises(ExportError, match=r"is in the file or in the model alone; export the run"):
        ExportedModel(model.folder, model.manifest, model.device)


def test_on_another_machine_rounding_is_allowed_and_no_more(model):
    """Of the logit: a steep calibration must not turn rounding into damage."""
    path = model.folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"machine": {"cpu": "another", "torch": "1"}}
    for intercept, is_allowed in ((0.00005, True), (-0.00005, True), (0.01, False)):
        manifest["calibration"]["intercept"] = intercept
        path.write_text(json.dumps(manifest))
        if is_allowed:
            ExportedModel.load(model.folder)
            continue
        with pytest.raises(ExportError, match=r"allowed difference of the logit: 0.0001"):
            ExportedModel.load(model.folder)


def test_golden_rows_that_are_no_request_are_told(model):
    golden = model.golden()
    rows = golden.drop_columns(["C1"])
    write_rows(model.folder / "golden.arrow", rows)
    with pytest.raises(ExportError, match=r"golden rows: .*'C1'"):
        model.check_golden()
    (model.folder / "golden.arrow").write_bytes(b"")
    with pytest.raises(ExportError, match=r"golden.arrow: no rows: "):
        model.check_golden()


def test_golden_scores_that_differ_are_told(model):
    manifest = json.loads((model.folder / "manifest.json").read_text())
    manifest["calibration"]["intercept"] = 0.01
    (model.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"golden row \d+ scores .*do not serve it"):
        ExportedModel.load(model.folder)


def test_wrong_raw_rows_are_told(model):
    rows = model.warmup_rows().slice(0, 2)
    with pytest.raises(DataError, match=r"column 'I1' is missing; the model needs I1,"):
        model.predict_raw(rows.drop_columns(["I1"]))
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    columns["C2"] = pa.array(["1f", "zz"])
    with pytest.raises(DataError, match=r"row 1: column 'C2': 'zz' is not hexadecimal"):
        model.predict_raw(pa.RecordBatch.from_pydict(columns))


@pytest.mark.parametrize("tables", ["fp32", "bf16", "int8", "int4"])
def test_a_delta_changes_its_rows_in_this_process_alone(source, tmp_path, tables):
    export(source, ExportOptions(name="ctr", tables=tables), tmp_path / "model")
    changed = ExportedModel.load(tmp_path / "model")
    other = ExportedModel.load(tmp_path / "model")
    rows = changed.warmup_rows().slice(0, 64)
    batch = changed.encode(rows)
    before = changed.predict(batch)
    table = next(iter(source.model.tables.state_tensors()))
    dim = source.config.embedding_dim
    ids = np.unique(batch.sparse.ids.view(batch.sparse.num_features, -1)[0].numpy())[:2]
    delta = Delta(table, ids.astype(np.int64), np.full((len(ids), dim), 0.5, np.float32), 1, 0.0)
    changed.apply(delta)
    assert changed.sequence == 1
    is_touched = np.isin(batch.sparse.ids.view(batch.sparse.num_features, -1)[0].numpy(), ids)
    after = changed.predict(batch)
    assert (after[is_touched] != before[is_touched]).all()
    assert np.array_equal(after[~is_touched], before[~is_touched])
    assert np.array_equal(other.predict(batch), before)
    assert np.array_equal(ExportedModel.load(tmp_path / "model").predict(batch), before)


def test_deltas_that_do_not_fit_are_refused(model, source):
    table = next(iter(source.model.tables.state_tensors()))
    rows = np.zeros((1, source.config.embedding_dim), np.float32)
    one = np.array([1])
    with pytest.raises(ExportError, match=r"delta 2 after 0: 1 must be next"):
        model.apply(Delta(table, one, rows, 2, 0.0))
    with pytest.raises(ExportError, match=r"delta 1: no table 'nope'"):
        model.apply(Delta("nope", one, rows, 1, 0.0))
    with pytest.raises(ExportError, match=r"delta 1: table '.*': rows of shape \(1, 3\) for 1"):
        model.apply(Delta(table, one, rows[:, :3], 1, 0.0))
    with pytest.raises(ExportError, match=r"delta 1: table '.*': rows 99999999 to 99999999"):
        model.apply(Delta(table, np.array([99_999_999]), rows, 1, 0.0))
    assert model.sequence == 0


def test_warming_scores_every_size(model):
    model.warm(40)


def test_lists_become_values_and_lengths():
    rows = pa.RecordBatch.from_pydict({"a": pa.array([["x", "y"], [], ["z"]])})
    inputs = request_inputs(rows)
    assert inputs["a"].texts() == ["x", "y", "z"]
    assert inputs["a.lengths"].values().tolist() == [2, 0, 1]
    assert isinstance(inputs["a"], WireTensor)


def test_a_copy_elsewhere_is_the_same_model(model, tmp_path):
    shutil.copytree(model.folder, tmp_path / "copy")
    copied = ExportedModel.load(tmp_path / "copy")
    rows = copied.warmup_rows()
    assert np.array_equal(copied.predict_raw(rows), model.predict_raw(rows))


@pytest.mark.gpu
@pytest.mark.parametrize(("tables", "mlp"), [("fp32", "fp32"), ("bf16", "bf16"), ("int8", "fp32")])
def test_a_gpu_scores_alike(source, tmp_path, tables, mlp):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    export(source, ExportOptions(name="ctr", tables=tables, mlp=mlp), tmp_path / "model")
    there = ExportedModel.load(tmp_path / "model", device="cuda")  # golden scores within rounding
    here = ExportedModel.load(tmp_path / "model")
    there.warm(300)
    rows = here.warmup_rows()
    tolerance = 1e-5 if mlp == "fp32" else 0.02
    for size in (1, 100, 1000):
        batch = here.encode(rows.slice(0, size))
        np.testing.assert_allclose(there.predict(batch), here.predict(batch), atol=tolerance)
    table = next(iter(source.model.tables.state_tensors()))
    fresh = np.full((2, source.config.embedding_dim), 0.5, np.float32)
    delta = Delta(table, np.array([2, 3]), fresh, 1, 0.0)
    here.apply(delta)
    there.apply(delta)
    batch = here.encode(rows)
    np.testing.assert_allclose(there.predict(batch), here.predict(batch), atol=tolerance)
