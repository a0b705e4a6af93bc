"""Rows to query a drawn model with."""

import pyarrow.ipc as ipc
import pytest

from fastdlrm.bench.exported import write_queries
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.service_times import inputs_of
from fastdlrm.contracts.server_info import ModelMetadata, TensorMetadata
from fastdlrm.contracts.signature import Signature
from fastdlrm.load.columns import columns_of


@pytest.mark.parametrize("model", ["rmc1", "ncf", "wnd"])
def test_queries_are_the_batch(tmp_path, model):
    """The file's rows, as the load generator sends them, are the inputs of the batch itself, and
    the server's signature takes them."""
    loaded = BenchModel.load(model, rows_scale=0.001, device="cpu", overrides=())
    (batch,) = loaded.batches(7, 1)
    write_queries(tmp_path / "q.arrow", batch)
    signature = Signature(loaded.schema)
    inputs = tuple(
        TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in signature.inputs
        if spec.form == "columns"
    )
    metadata = ModelMetadata(name="m", versions=(), platform="", inputs=inputs, outputs=())
    columns, unused = columns_of(ipc.open_file(str(tmp_path / "q.arrow")).read_all(), metadata)
    assert not unused
    found = {}
    for column in columns:
        found |= column.tensors(0, 7)
    expected = inputs_of(batch)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].datatype == tensor.datatype
        assert found[name].shape == tensor.shape
        assert (found[name].values() == tensor.values()).all()
    assert signature.num_rows(found) == 7
