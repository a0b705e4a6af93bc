"""What precisions cost: figures, limits, and all precisions beside each other."""

import numpy as np
import pytest

from fastdlrm.contracts.exported import Calibration, Quality
from fastdlrm.errors import ExportError
from fastdlrm.export.calibration import fit_calibration, served_logits
from fastdlrm.export.verify import Limits, labels_of, logits_of, require_equal, require_quality
from fastdlrm.export.write import ExportOptions, export
from fastdlrm.metrics.logistic import logistic
from fastdlrm.model import int8_predictor
from fastdlrm.model.int8_mlp import has_int8_products
from fastdlrm.model.predictor import Predictor
from fastdlrm.train.evaluate import evaluate


def quality(auc=0.8, ne=0.9):
    """A precision with these metrics."""
    return Quality(
        tables="int8",
        mlp="fp32",
        tables_bytes=1,
        max_logit_difference=0.1,
        auc=auc,
        log_loss=0.5,
        ne=ne,
        calibration=1.0,
        num_rows=7,
    )


def test_limits():
    limits = Limits(max_auc_drop=0.001, max_ne_rise=0.001)
    require_quality(quality(), quality(0.7991, 0.9008), limits)
    require_quality(quality(None, None), quality(None, None), limits)
    with pytest.raises(ExportError, match=r"tables int8, MLPs fp32: AUC falls by 0.00200 on 7 row"):
        require_quality(quality(), quality(0.798), limits)
    # 0.9018 / 0.9 = 1.002
    with pytest.raises(ExportError, match=r"entropy rises by 0.200% on 7 rows, 0.100% is allowed"):
        require_quality(quality(), quality(ne=0.9018), limits)


def test_equal_means_every_bit():
    run = np.array([0.1, 0.2], np.float32)
    require_equal(run.copy(), run, "row")
    found = np.array([0.1, np.nextafter(np.float32(0.2), np.float32(1))], np.float32)
    with pytest.raises(ExportError, match=r"row 1: the exported float32 model's logit is 0.20000"):
        require_equal(found, run, "row")


def test_the_float32_figures_are_those_of_eval(source, splits, tmp_path):
    manifest = export(source, ExportOptions(name="ctr"), tmp_path / "model", **splits)
    values = evaluate(source.model, splits["test"], 500, next(source.model.parameters()).device)
    for found in manifest.quality:
        assert (found.auc, found.ne, found.log_loss) == (values.auc, values.ne, values.log_loss)
        assert found.calibration == values.calibration


def test_as_many_rows_are_compared_as_asked_for(source, splits, tmp_path):
    options = ExportOptions(name="ctr", verify_rows=100)
    manifest = export(source, options, tmp_path / "model", **splits)
    assert [found.num_rows for found in manifest.quality] == [100, 100]
    with pytest.raises(ExportError, match=r"--verify-rows 0: 1 or more is allowed"):
        export(source, ExportOptions(name="ctr", verify_rows=0), tmp_path / "other", **splits)


def test_all_precisions_are_compared(source, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(int8_predictor, "MIN_WEIGHTS", 1)
    options = ExportOptions(name="ctr", tables="bf16", compare=True)
    manifest = export(source, options, tmp_path / "model", **splits)
    pairs = [(found.tables, found.mlp) for found in manifest.quality]
    assert pairs[:2] == [("fp32", "fp32"), ("bf16", "fp32")]
    mlps = ("fp32", "bf16", "int8") if has_int8_products() else ("fp32", "bf16")
    wanted = {(t, m) for t in ("fp32", "bf16", "int8", "int4") for m in mlps}
    assert set(pairs) == wanted
    assert len(pairs) == len(wanted)
    by_pair = {(found.tables, found.mlp): found for found in manifest.quality}
    bf16, int8, int4 = (by_pair[t, "fp32"].max_logit_difference for t in ("bf16", "int8", "int4"))
    assert 0 < bf16 < int4
    assert 0 < int8 < int4
    assert sorted(path.name for path in (tmp_path / "model").glob("*.bin")) == ["tables.bin"]
    with pytest.raises(ExportError, match=r"--compare: .* on the test split; name the dataset"):
        export(source, options, tmp_path / "other")


def test_what_cannot_be_had_is_left_out_aloud(source, splits, tmp_path, caplog):
    """Without a validation split the ranges of int8 are not known."""
    options = ExportOptions(name="ctr", compare=True)
    manifest = export(source, options, tmp_path / "model", test=splits["test"])
    assert "int8" not in {found.mlp for found in manifest.quality}
    assert "not compared: MLPs of int8" in caplog.text


def test_served_logits_are_those_of_the_probabilities(splits):
    rows = splits["validation"]
    labels = labels_of(rows, len(rows)).astype(np.float64)
    logits = np.random.default_rng(0).normal(labels, 1).astype(np.float32)
    for kind in ("none", "platt", "isotonic"):
        fitted = fit_calibration(kind, logits.astype(np.float64), labels, 0.3)
        served = served_logits(fitted, logits)
        assert np.isfinite(served).all()
        assert 0 < logistic(served).min() < logistic(served).max() < 1
        assert (np.diff(served[np.argsort(logits)]) >= 0).all()
    assert served_logits(Calibration(), logits).astype(np.float32).tolist() == logits.tolist()


def test_logits_that_are_no_numbers_are_not_fitted():
    logits, labels = np.array([0.0, np.nan, 1.0]), np.array([0.0, 1.0, 1.0])
    with pytest.raises(ExportError, match=r"'platt': a logit of the validation split is not finit"):
        fit_calibration("platt", logits, labels)


def test_logits_of_the_first_rows(source, splits):
    predictor = Predictor(source.model.eval())
    rows = splits["test"]
    found = logits_of(lambda batch: predictor(batch.dense, batch.sparse), rows, 33)
    batch = rows.batch(slice(0, 33))
    assert np.array_equal(found, predictor(batch.dense, batch.sparse).numpy())
