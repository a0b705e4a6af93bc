"""The MLPs and the interaction compiled ahead of time: what comes after the lookup.

A program takes dense features (B, N) and pooled vectors (B, F, D), both float32, and gives logits
(B,). It is fixed to the weights it was built from. Eager torch is none of them: it needs no build,
runs everywhere, and is what the others are compared with.

Shapes: B batch, N dense features, F sparse features, D embedding dim.
"""

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastdlrm.contracts.exported import CompiledKind, Machine, Program
from fastdlrm.contracts.processor import processor_name
from fastdlrm.errors import ExportError
from fastdlrm.model.dlrm import DLRM

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DenseProgram = Callable[[Tensor, Tensor], Tensor]
"""(B, N), (B, F, D) -> logits (B,)."""

FILES: dict[CompiledKind, str] = {"aoti": "programs/dense.pt2", "onnx": "programs/dense.onnx"}
EXAMPLE_ROWS = 100
MAX_ROWS = 1 << 16
"""Of one call of a program."""
BATCHES = (1, 7, 16, 100)
"""Sizes in which rows are scored again, to see whether their logits depend on it."""
INPUTS, OUTPUT = ("dense", "pooled"), "logit"


def machine() -> Machine:
    """This machine, as far as machine code and the last bits of a score depend on it."""
    return Machine(cpu=processor_name(), torch=str(torch.__version__))


def build_program(
    kind: CompiledKind, folder: Path, model: DLRM, dense: Tensor, pooled: Tensor
) -> Program:
    """Compile, load again, and compare with the model.

    Args:
        kind: onnx: for ONNX Runtime; aoti: a shared library made by torch's Inductor.
        folder: The exported model, which gets the file.
        model: In evaluation mode, on the CPU.
        dense: Rows to compare with, shape (B, N).
        pooled: Their pooled vectors, shape (B, F, D), float32.

    Raises:
        ExportError: What it takes is not installed, or the compiler fails.
    """
    path = folder / FILES[kind]
    path.parent.mkdir(exist_ok=True)
    exported = _traced(model, dense, pooled)
    if kind == "onnx":
        write_onnx(path, exported, INPUTS)
    else:
        _write_library(path, exported)
    program = load_program(folder, kind)
    with torch.inference_mode():
        logits = program(dense, pooled)
        difference = (logits - model.head(dense, pooled)).abs().max()
        moved = [
            (program(dense[:size], pooled[:size]) - logits[:size]).abs().max() for size in BATCHES
        ]
    return Program(
        kind=kind,
        file=FILES[kind],
        machine=machine(),
        max_logit_difference=float(difference),
        max_batch_difference=float(max(moved)),
    )


def load_program(folder: Path, kind: CompiledKind) -> DenseProgram:
    """A program, ready to be called on one thread.

    Args:
        folder: The exported model.
        kind: Which.

    Raises:
        ExportError: What it takes is not installed, or the file cannot be run here.
    """
    path = folder / FILES[kind]
    if not path.is_file():
        raise ExportError(f"{path}: no such program; export with --program {kind}")
    return _load_onnx(path) if kind == "onnx" else _load_library(path)


def require_machine(program: Program) -> None:
    """Refuse machine code of another machine.

    Raises:
        ExportError: It was compiled for another processor or another torch.
    """
    here = machine()
    if program.kind == "aoti" and program.machine != here:
        raise ExportError(
            f"{program.file}: compiled for {program.machine.cpu}, torch {program.machine.torch}; "
            f"this is {here.cpu}, torch {here.torch}: export here, or serve with program = 'eager'"
        )


class DenseHead(nn.Module):
    """`DLRM.head` in torch's own operators, which every compiler knows."""

    def __init__(self, model: DLRM) -> None:
        """Share a model's MLPs.

        Args:
            model: In evaluation mode.
        """
        super().__init__()
        self.bottom_mlp, self.top_mlp = model.bottom_mlp, model.top_mlp
        self.table_projection = model.table_projection
        self.interaction = model.interaction.compilable()

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Logits, shape (B,), of dense features (B, N) and pooled vectors (B, F, D)."""
        vector = None if self.bottom_mlp is None else self.bottom_mlp(dense)
        if self.table_projection is not None:
            pooled = self.table_projection(pooled)
        logits: Tensor = self.top_mlp(self.interaction(vector, pooled))
        return logits.squeeze(1)


def _traced(model: DLRM, dense: Tensor, pooled: Tensor) -> Any:
    """The head for any number of rows."""
    rows = torch.export.Dim("rows", min=1, max=MAX_ROWS)
    example = dense[:EXAMPLE_ROWS].clone(), pooled[:EXAMPLE_ROWS].contiguous().clone()
    with torch.no_grad():
        head = DenseHead(model).eval()
        return torch.export.export(head, example, dynamic_shapes=({0: rows}, {0: rows}))


def write_onnx(path: Path, exported: torch.export.ExportedProgram, inputs: Sequence[str]) -> None:
    """Write a traced module as one ONNX file; its output is called `OUTPUT`.

    Args:
        path: The file.
        exported: The module.
        inputs: What its inputs are called, in order.

    Raises:
        ExportError: What it takes is not installed, or torch writes none.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as problem:
        raise ExportError(f"{path.name}: {problem}; pip install 'fastdlrm[onnx]'") from problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=list(inputs),
            output_names=[OUTPUT],
            verbose=False,
        )
        if written is None:
            raise ExportError(f"{path.name}: torch wrote none; export without it")
        written.save(str(path))


def onnx_session(path: Path) -> "InferenceSession":
    """An ONNX file, ready to be run on one thread.

    Raises:
        ExportError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as problem:
        raise ExportError(f"{path}: {problem}; pip install 'fastdlrm[onnx]'") from problem
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _load_onnx(path: Path) -> DenseProgram:
    session = onnx_session(path)
    names = {value.name for value in session.get_inputs()}

    def run(dense: Tensor, pooled: Tensor) -> Tensor:
        values = dict(zip(INPUTS, (dense, pooled.contiguous()), strict=True))
        fed = {name: value.numpy() for name, value in values.items() if name in names}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def _write_library(path: Path, exported: Any) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ExportError(
            "program aoti: it is made by a C++ compiler, and there is neither g++ nor clang++; "
            "install one, or use program onnx"
        )
    try:
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(path), inductor_configs={"freezing": True}
        )
    except RuntimeError as problem:
        raise ExportError(f"program aoti: the compiler fails: {problem}") from problem


def _load_library(path: Path) -> DenseProgram:
    library = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)

    def run(dense: Tensor, pooled: Tensor) -> Tensor:
        logits: Tensor = library(dense.contiguous(), pooled.contiguous())
        return logits

    return run
