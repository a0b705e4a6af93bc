"""Bytes of the parts of training: what a run of one rank and a plan for many both count by.

Shapes: B samples, F sparse features, D embedding dim, R rows of a table, L ids.
"""

from collections.abc import Sequence
from itertools import pairwise

TABLE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""A number of a table."""
WEIGHT_BYTES = 4
"""A row's learned pooling weight."""
STATE_NUMBERS = {"sgd": 0, "adagrad": 1, "adam": 2, "adamw": 2}
"""Numbers an optimizer keeps a parameter, rowwise_adagrad apart."""
ORDER_BYTES = 48
"""An id: its row, sorted row, position, chunk, and what the sort works in."""
PART_BYTES_PER_ID = 4 * 2 / 64
"""A number of D: partial sums of long runs, two slots of float32 for every 64 ids."""
BATCHES_ON_GPU = 3
"""The one computed on and two on their way."""
BATCHES_ON_HOST = 4
"""Gathered ahead of the one computed on."""


def compute_bytes(precision: str) -> int:
    """Of a number in the MLPs' products."""
    return 2 if precision == "bf16" else 4


def exchange_bytes(dtype: str, precision: str) -> int:
    """Of a number of a pooled vector or its gradient between ranks.

    Args:
        dtype: auto, fp32 or bf16; auto: bf16 under precision bf16, else fp32.
        precision: Of the products.
    """
    return compute_bytes(precision if dtype == "auto" else dtype)


def state_bytes(optimizer: str) -> tuple[int, int]:
    """What the tables' optimizer keeps, in float32: bytes a row, and bytes a number of it."""
    return (4, 0) if optimizer == "rowwise_adagrad" else (0, 4 * STATE_NUMBERS[optimizer])


def parameter_bytes(optimizer: str, precision: str) -> int:
    """A parameter of the MLPs: itself, its gradient, its copy in bf16, its optimizer's state."""
    width = compute_bytes(precision)
    return 4 + 4 + (width if width < 4 else 0) + 4 * STATE_NUMBERS[optimizer]


def num_parameters(widths: Sequence[int]) -> int:
    """Weights and biases of an MLP, its input's width first."""
    return sum((k + 1) * n for k, n in pairwise(widths))


def activation_numbers(
    bottom: Sequence[int], top: Sequence[int], num_vectors: int, dim: int, *, is_gpu: bool
) -> int:
    """Most numbers a sample that forward and backward hold at one time.

    Args:
        bottom: Widths of the bottom MLP, its input first.
        top: Likewise.
        num_vectors: F.
        dim: D.
        is_gpu: There the pooled vectors are fused away, only their gradient is held.
    """
    passing = 2 * max((a + b for a, b in pairwise(top)), default=0)
    return sum(bottom) + sum(top) + passing + num_vectors * dim * (1 if is_gpu else 3)


def order_bytes(*, is_gpu: bool) -> tuple[float, float]:
    """Sorting ids and summing their rows' gradients: bytes an id, and bytes a column of it."""
    return ORDER_BYTES, PART_BYTES_PER_ID if is_gpu else 4


def size_unit(num_bytes: float) -> tuple[int, str]:
    """The unit in which a size reads best, in bytes and by name."""
    units = ((2**30, "GiB"), (2**20, "MiB"))
    return next((unit for unit in units if num_bytes >= unit[0] / 10), (2**10, "KiB"))


def size_text(num_bytes: float) -> str:
    """A size for a person to read."""
    size, name = size_unit(num_bytes)
    return f"{num_bytes / size:.2f} {name}"
