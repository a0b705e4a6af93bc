"""Compile every kernel for an H100 on a machine without a GPU; prints one JSON list.

A program of its own: it puts a driver that launches nothing in the place of Triton's, and Triton's
interpreter must be off. The kernels' wrappers are called as in training, on CPU tensors, so each
kernel is compiled for the very arguments that it gets.
"""

import json
import re
import subprocess
import sys
import tempfile

import torch
import triton.runtime.jit
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fastdlrm.kernels import cross, interaction, lookup  # noqa: F401  define what the kernels implement
from fastdlrm.kernels.cuda import cross as gpu_cross
from fastdlrm.kernels.cuda import dense_update, logit_loss, mlp, row_update
from fastdlrm.kernels.cuda import interaction as gpu_interaction
from fastdlrm.kernels.cuda import lookup as gpu_lookup
from fastdlrm.kernels.cuda import quantized_lookup as gpu_quantized_lookup
from fastdlrm.kernels.dense_update import DenseRule
from fastdlrm.kernels.row_update import UpdateRule

CAPABILITY = 90
SHARED_BYTES = 227 * 1024


class _Utils:
    """What Triton asks of a device while it compiles, and a loader that loads nothing."""

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 132, "warpSize": 32}


class _Driver:
    """An H100 that is not there."""

    utils = _Utils()

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher_cls(self, *_: object):
        return lambda *args, **kwargs: None


def record_compiled() -> list[tuple[str, object]]:
    """Let each launch compile only; the kernels compiled so far, by name."""
    compiled = []
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self, *args: object, grid: object, warmup: bool, **options: object) -> object:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, kernel))
        return kernel

    driver.set_active(_Driver())
    triton.runtime.jit.JITFunction.run = compile_only
    return compiled


def compile_interactions() -> None:
    cases = [
        # features, dim, type, dense vector, diagonal
        (26, 128, torch.bfloat16, True, False),
        (26, 16, torch.float32, True, False),
        (70, 20, torch.bfloat16, True, True),
        (8, 64, torch.float16, False, False),
    ]
    for num_features, dim, dtype, has_dense, diagonal in cases:
        pooled = torch.zeros(num_features, 4, dim, dtype=dtype).transpose(0, 1)
        dense = torch.zeros(4, dim, dtype=dtype) if has_dense else None
        weight = torch.zeros(50, dim)
        rows = torch.zeros(num_features * 4, dtype=torch.int32)
        out = gpu_interaction.dot_interaction(dense, pooled, diagonal, 0)
        gpu_interaction.dot_interaction_backward(out, dense, pooled, diagonal, True)
        lookup_of = (dense, num_features, diagonal)
        gpu_interaction.lookup_dot_interaction(weight, rows, *lookup_of, 3000, dtype)
        for scatter_rows in (0, 50):
            gpu_interaction.lookup_dot_interaction_backward(
                out, weight, rows, *lookup_of, True, scatter_rows
            )


def compile_cross() -> None:
    for num_vectors, dim, dtype, has_dense in (
        (27, 128, torch.bfloat16, True),
        (5, 20, torch.float32, False),
    ):
        x = torch.zeros(100, -(-num_vectors * dim // 8) * 8, dtype=dtype)
        of_layers = x.expand(3, *x.shape).contiguous()
        gpu_cross.cross_input_grad(x, of_layers, of_layers, x, num_vectors, dim, has_dense)


def compile_lookups() -> None:
    gpu_lookup.segment_of(torch.zeros(50, dtype=torch.int64), 3000)
    rows, weights = torch.zeros(10, dtype=torch.int32), torch.zeros(10)
    for offsets, is_mean in ((None, False), (torch.zeros(5, dtype=torch.int64), True)):
        for ids_weights in (None, weights):
            table = torch.zeros(50, 20)
            gpu_lookup.pooled_lookup(table, rows, offsets, ids_weights, is_mean, torch.bfloat16)
            for is_int4 in (False, True):
                stack = torch.zeros(50, 14 if is_int4 else 22, dtype=torch.uint8)
                gpu_quantized_lookup.quantized_lookup(
                    stack, rows, offsets, ids_weights, is_mean, torch.bfloat16, is_int4
                )


def compile_row_updates() -> None:
    rows, scalars = torch.zeros(300, dtype=torch.int32), torch.zeros(5)
    for dtype, dim in ((torch.float32, 128), (torch.bfloat16, 20)):
        weight, grad = torch.zeros(50, dim, dtype=dtype), torch.zeros(300, dim, dtype=dtype)
        factors = torch.zeros(300) if dim == 20 else None
        for name in ("sgd", "adagrad", "rowwise_adagrad", "adam"):
            rule = UpdateRule(name, l2=0.1)
            row_update.update_rows_(
                weight, list(rule.zero_state(weight).values()), grad, rows, rows, factors,
                row_update.row_chunks(rows), scalars, **rule._asdict(),
            )  # fmt: skip


def compile_the_rest() -> None:
    x, vector, labels = (
        torch.zeros(100, 256, dtype=torch.bfloat16),
        torch.zeros(1),
        torch.zeros(100),
    )
    weight = torch.zeros(1, 256)
    for loss in ("bce", "weighted_bce", "mse"):
        logit_loss.logit_loss(
            x, weight, vector, weight, vector, labels, loss_name=loss, class_weights=(1.0, 2.0),
            normalizer=100, relu=True, accumulate=loss == "bce",
        )  # fmt: skip
    flat = torch.zeros(5000)
    for name in ("sgd", "adagrad", "adam", "adamw"):
        rule = DenseRule(name, weight_decay=0.1)
        state = list(rule.zero_state(flat).values())
        scalars, copy = torch.zeros(5), flat.bfloat16()
        dense_update.dense_update_(flat, copy, state, flat, scalars, **rule._asdict())
    wide = torch.zeros(256, 512, dtype=torch.bfloat16)
    mlp.masked_input_grad(wide, wide.t().contiguous(), wide[:, :256])


def stack_bytes(kernel: object) -> int:
    """Local memory a thread takes, spilled registers included."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"STACK:(\d+)", shown)[-1])


def main() -> None:
    compiled = record_compiled()
    compile_interactions()
    compile_cross()
    compile_lookups()
    compile_row_updates()
    compile_the_rest()
    found = [
        {
            "name": name,
            "shared_bytes": kernel.metadata.shared,
            "stack_bytes": stack_bytes(kernel),
            "has_local_memory": ".local" in kernel.asm["ptx"],
            "has_wgmma": "wgmma" in kernel.asm["ptx"],
        }
        for name, kernel in compiled
    ]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
