"""The diagnosis is complete, goes through JSON and prints."""

import importlib
import os
import platform
import subprocess
import sys

import msgspec
import numpy
import pytest
import torch
from rich.console import Console

from fastdlrm import __version__
from fastdlrm.cli.doctor import Diagnosis, diagnose, doctor, missing, render
from fastdlrm.contracts.host import Fact, Gpu
from fastdlrm.kernels.registry import DEVICES, OPERATORS, implementations

FUNCTIONS = {
    "pooled_lookup": "fastdlrm.kernels.lookup:pooled_lookup",
    "dot_interaction": "fastdlrm.kernels.interaction:dot_interaction",
    "cross_input_grad": "fastdlrm.kernels.cross:define_cross_input_grad",
    "logit_loss": "fastdlrm.kernels.logit_loss:logit_loss",
    "mlp_backward": "fastdlrm.kernels.mlp:mlp_backward",
    "dense_update": "fastdlrm.kernels.dense_update:dense_update_",
    "sort_rows": "fastdlrm.kernels.row_gradient:sort_rows",
    "row_gradient": "fastdlrm.kernels.row_gradient:row_gradient",
    "update_rows_": "fastdlrm.kernels.row_update:update_rows_",
    "quantized_lookup": "fastdlrm.kernels.quantized_lookup:quantized_lookup",
}
"""One function of each operator."""

H200 = Gpu(name="NVIDIA H200", memory_bytes=150110011392, compute_capability="9.0", has_bf16=True)


def printed(diagnosis: Diagnosis) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(diagnosis))
    return capture.get()


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose()


def test_every_operator_has_an_implementation_on_every_device() -> None:
    listed = {(i.operator, i.device) for i in implementations()}
    assert listed == {(operator, device) for operator in OPERATORS for device in DEVICES}
    assert all(i.name and i.reason for i in implementations())


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_listed_exists(operator: str) -> None:
    module, _, name = FUNCTIONS[operator].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_versions_are_those_that_run(diagnosis: Diagnosis) -> None:
    versions = {name: fact.value for name, fact in diagnosis.versions.items()}
    assert versions["fastdlrm"] == __version__
    assert versions["python"] == platform.python_version()
    assert torch.__version__.startswith(versions["torch"])
    assert versions["numpy"] == numpy.__version__


def test_machine_is_the_one_that_runs(diagnosis: Diagnosis) -> None:
    assert diagnosis.host.num_cores.value == os.cpu_count()
    assert bool(diagnosis.host.gpus) == torch.cuda.is_available()
    assert bool(diagnosis.host.gpus) != bool(diagnosis.host.no_gpu)
    capability = diagnosis.host.torch_cpu_capability.value
    assert capability == torch.backends.cpu.get_cpu_capability()


def test_survives_json(diagnosis: Diagnosis) -> None:
    assert msgspec.json.decode(msgspec.json.encode(diagnosis), type=Diagnosis) == diagnosis


def test_prints_every_part(diagnosis: Diagnosis) -> None:
    text = printed(diagnosis)
    for part in (
        "Versions",
        "Machine",
        "Kernels",
        "float32 products",
        "avx512_bf16",
        *OPERATORS,
        torch.__version__.split("+")[0],
    ):
        assert part in text


def test_prints_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(json_output=True)
    assert msgspec.json.decode(capsys.readouterr().out, type=Diagnosis).kernels
    doctor()
    assert "Kernels" in capsys.readouterr().out


def test_a_gpu_is_shown(diagnosis: Diagnosis) -> None:
    host = msgspec.structs.replace(diagnosis.host, gpus=(H200,), no_gpu="")
    text = printed(msgspec.structs.replace(diagnosis, host=host))
    # 150110011392 / 2^30 = 139.8.
    assert "NVIDIA H200, 139.8 GiB, sm 9.0, bf16" in text


OPTIONAL = ("triton", "tensorboard", "plotly")


def test_says_what_is_missing_and_what_to_do(diagnosis: Diagnosis) -> None:
    host = msgspec.structs.replace(diagnosis.host, gpus=(), no_gpu="no driver; install one")
    absent = Fact(reason="not installed")
    found = {m.name: m.remedy for m in missing(dict.fromkeys(OPTIONAL, absent), host)}
    assert found["GPU"] == "no driver; install one"
    assert found["tensorboard"] == "pip install 'fastdlrm[tensorboard]'"
    assert found["plotly"] == "pip install 'fastdlrm[report]'"
    assert "CUDA build of torch" in found["triton"]
    present = Fact(value="1.0")
    host = msgspec.structs.replace(host, gpus=(H200,), no_gpu="")
    assert missing(dict.fromkeys(OPTIONAL, present), host) == []


def test_works_with_every_gpu_hidden() -> None:
    code = (
        "from fastdlrm.cli.doctor import diagnose; d = diagnose();"
        "assert d.host.gpus == () and d.host.no_gpu"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True)


def test_the_table_of_kernels_needs_no_torch() -> None:
    code = "import sys, fastdlrm.cli.doctor;assert not {'torch', 'rich.table'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
