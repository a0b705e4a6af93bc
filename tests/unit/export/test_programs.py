"""Compiled programs: the model's logits, and words where they cannot be had."""

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest
import torch

from fastdlrm.contracts.exported import Machine
from fastdlrm.errors import ExportError
from fastdlrm.export import programs
from fastdlrm.export.model import ExportedModel
from fastdlrm.export.programs import load_program, require_machine
from fastdlrm.export.write import ExportOptions, export
from fastdlrm.model.build import build_dlrm
from fastdlrm.model.compression_config import CompressionConfig, HashCompression
from tests.training import DIM, FEATURES, NUM_DENSE, make_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporters warn of themselves


def has_onnx() -> bool:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return False
    return True


def check(source, splits, folder, kind):
    manifest = export(source, ExportOptions(name="ctr", program=kind), folder, **splits)
    (built,) = manifest.programs
    assert built.kind == kind
    assert built.max_logit_difference < 1e-5
    assert built.max_batch_difference < 1e-5
    compiled = ExportedModel.load(folder)
    assert compiled.program == kind
    eager = ExportedModel.load(folder, program="eager")
    rows = compiled.warmup_rows()
    np.testing.assert_allclose(compiled.predict_raw(rows), eager.predict_raw(rows), atol=1e-6)
    for size in (1, 2, 33):
        part = rows.slice(3, size)
        np.testing.assert_allclose(compiled.predict_raw(part), eager.predict_raw(part), atol=1e-6)


@pytest.mark.skipif(not has_onnx(), reason="needs the extra `onnx`")
def test_onnx(source, splits, tmp_path):
    check(source, splits, tmp_path / "model", "onnx")


@pytest.mark.skipif(not has_onnx(), reason="needs the extra `onnx`")
def test_compressed_and_narrow_tables(source, splits, tmp_path):
    """A program gets the vectors that the model's own head does."""
    first, second, *_ = source.model.tables.num_embeddings
    config = msgspec.structs.replace(
        source.config,
        table_dims={first: 2},
        table_projection=True,
        compression=CompressionConfig(tables={second: HashCompression(num_rows=5)}),
    )
    model = build_dlrm(config, source.schema, source.encoding, seed=1)
    held = dataclasses.replace(source, config=config, model=model)
    check(held, splits, tmp_path / "model", "onnx")


COMPILED = [
    pytest.param("onnx", marks=pytest.mark.skipif(not has_onnx(), reason="needs the extra `onnx`")),
    pytest.param(
        "aoti",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
        ],
    ),
]


@pytest.mark.parametrize("interaction", ["dot_self", "cat", "cross", "projection", "fm", "dcn"])
@pytest.mark.parametrize("kind", COMPILED)
def test_every_interaction_compiles(kind, interaction, tmp_path):
    """`build_program` compares it with the model, and rows with the same rows in other batches."""
    model = make_model(interaction).eval()
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(200, NUM_DENSE, generator=generator)
    pooled = torch.randn(200, len(FEATURES), DIM, generator=generator)
    built = programs.build_program(kind, tmp_path, model, dense, pooled)
    with torch.no_grad():
        largest = float(model.head(dense, pooled).abs().max())
    assert built.max_logit_difference < 1e-5 * largest
    assert built.max_batch_difference < 1e-5 * largest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_aoti(source, splits, tmp_path):
    check(source, splits, tmp_path / "model", "aoti")


def test_a_program_that_is_not_there_is_named(source, tmp_path):
    export(source, ExportOptions(name="ctr"), tmp_path / "model")
    with pytest.raises(ExportError, match=r"no program 'onnx'; export the run with --program onnx"):
        ExportedModel.load(tmp_path / "model", program="onnx")
    with pytest.raises(ExportError, match=r"dense.onnx: no such program; export with --program"):
        load_program(tmp_path / "model", "onnx")


def test_machine_code_of_another_machine_is_refused():
    elsewhere = Machine(cpu="another processor", torch="1.0")
    program = programs.Program(
        kind="aoti",
        file="programs/dense.pt2",
        machine=elsewhere,
        max_logit_difference=0.0,
        max_batch_difference=0.0,
    )
    with pytest.raises(ExportError, match=r"compiled for another processor, torch 1.0; this is"):
        require_machine(program)
    require_machine(msgspec.structs.replace(program, kind="onnx"))


def test_no_compiler_is_told(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match=r"made by a C\+\+ compiler, and there is neither g\+\+"):
        export(source, ExportOptions(name="ctr", program="aoti"), tmp_path / "model")
