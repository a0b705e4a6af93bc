"""Deltas of what training has changed: applied, they are the model trained further."""

import msgspec
import numpy as np
import pytest
import torch

from fastdlrm.config import to_tree
from fastdlrm.contracts.delta import DELTAS, delta_path, read_delta
from fastdlrm.contracts.manifest import FileEntry, sha256_of
from fastdlrm.errors import ExportError
from fastdlrm.export import fresh_rows
from fastdlrm.export.fresh_rows import write_fresh_rows
from fastdlrm.export.model import TABLES, ExportedModel
from fastdlrm.export.write import ExportOptions, export


@pytest.fixture
def run(trained):
    """What the run says of itself."""
    return trained[0].manifest


def change(model, ids, by=0.25, count=2):
    """Change rows of the first tables."""
    with torch.no_grad():
        for table in list(model.tables.state_tensors().values())[:count]:
            table[ids] += by


@pytest.mark.parametrize("tables", ["fp32", "int8"])
def test_applied_they_are_the_model_trained_further(source, run, tmp_path, tables):
    folder = tmp_path / "model"
    export(source, ExportOptions(name="ctr", tables=tables), folder)
    change(source.model, [0, 2])
    first = write_fresh_rows(folder, run, source.model)
    assert [path.name for path in first] == ["000000001.safetensors", "000000002.safetensors"]
    assert read_delta(first[0]).ids.tolist() == [0, 2]
    change(source.model, [1], count=1)
    second = write_fresh_rows(folder, run, source.model)
    assert [read_delta(path).sequence for path in second] == [3]
    assert read_delta(second[0]).ids.tolist() == [1]
    assert write_fresh_rows(folder, run, source.model) == []
    export(source, ExportOptions(name="ctr", tables=tables), tmp_path / "anew")
    served = ExportedModel.load(folder)
    rows = served.warmup_rows()
    assert served.apply_deltas() == 3
    assert served.apply_deltas() == 3
    anew = ExportedModel.load(tmp_path / "anew")
    assert np.array_equal(served.predict_raw(rows), anew.predict_raw(rows))


def test_rows_of_narrow_tables(narrow, run, tmp_path):
    folder = tmp_path / "model"
    config = {**run.config, "model": to_tree(narrow.config)}
    further = msgspec.structs.replace(run, config=config)
    export(narrow, ExportOptions(name="ctr"), folder)
    change(narrow.model, [0, 2], count=3)
    paths = write_fresh_rows(folder, further, narrow.model)
    assert [read_delta(path).rows.shape for path in paths] == [(2, 2), (2, 1), (2, 4)]
    assert write_fresh_rows(folder, further, narrow.model) == []
    served = ExportedModel.load(folder)
    served.apply_deltas()
    export(narrow, ExportOptions(name="ctr"), tmp_path / "anew")
    rows = served.warmup_rows()
    anew = ExportedModel.load(tmp_path / "anew")
    assert np.array_equal(served.predict_raw(rows), anew.predict_raw(rows))


def test_mlps_cannot_travel(source, run, tmp_path):
    folder = tmp_path / "model"
    export(source, ExportOptions(name="ctr"), folder)
    change(source.model, [1])
    with torch.no_grad():
        source.model.top_mlp[0].bias += 1
    with pytest.raises(ExportError, match=r"'top_mlp.0.bias' differs .* or pass --tables-only"):
        write_fresh_rows(folder, run, source.model)
    assert len(write_fresh_rows(folder, run, source.model, tables_only=True)) == 2


def test_a_gap_is_told(source, run, tmp_path):
    folder = tmp_path / "model"
    export(source, ExportOptions(name="ctr"), folder)
    change(source.model, [1])
    write_fresh_rows(folder, run, source.model)
    delta_path(folder / DELTAS, 1).unlink()
    with pytest.raises(ExportError, match=r"deltas \[2\]; they count from 1 without a gap"):
        write_fresh_rows(folder, run, source.model)
    with pytest.raises(ExportError, match=r"delta 2 after 0: 1 must be next; bring the missing"):
        ExportedModel.load(folder).apply_deltas()


def test_many_rows_are_several_deltas(source, run, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    export(source, ExportOptions(name="ctr"), folder)
    monkeypatch.setattr(fresh_rows, "MAX_DELTA_ROWS", 2)
    change(source.model, [0, 2, 3, 5, 7], count=1)
    paths = write_fresh_rows(folder, run, source.model)
    deltas = [read_delta(path) for path in paths]
    assert [delta.ids.tolist() for delta in deltas] == [[0, 2], [3, 5], [7]]
    assert {delta.base for delta in deltas} == {sha256_of(folder / TABLES)}


def test_the_run_must_be_the_models(source, run, tmp_path):
    folder = tmp_path / "model"
    export(source, ExportOptions(name="ctr"), folder)
    other = msgspec.structs.replace(
        run, files={name: FileEntry(sha256="0", size_bytes=1) for name in run.files}
    )
    with pytest.raises(ExportError, match=r"the run encodes raw values otherwise, or its model"):
        write_fresh_rows(folder, other, source.model)


def test_a_delta_of_another_export_is_refused(source, run, tmp_path):
    for name in ("one", "two"):
        export(source, ExportOptions(name="ctr"), tmp_path / name)
        change(source.model, [3], count=1)
    (path,) = write_fresh_rows(tmp_path / "two", run, source.model)
    with pytest.raises(ExportError, match=r"delta 1: made for tables .*; it belongs to another"):
        ExportedModel.load(tmp_path / "one").apply(read_delta(path))
