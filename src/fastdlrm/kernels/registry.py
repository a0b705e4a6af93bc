"""Which implementation of each hot operator runs on which device, and why.

Importing this imports no torch, so a command can list the table at once.
"""

from typing import Literal

import msgspec

OPERATORS = (
    "pooled_lookup",
    "dot_interaction",
    "cross_input_grad",
    "logit_loss",
    "mlp_backward",
    "sort_rows",
    "row_gradient",
    "update_rows_",
    "dense_update",
    "quantized_lookup",
)
"""The hot operators, in the order of a training step; then those of inference alone."""

DEVICES = ("cpu", "cuda")

Way = Literal["default", "onednn"]
"""Of multiplying matrices: what torch takes by itself, or oneDNN."""

COMPILED = {
    ("dot_interaction", "cpu"): ("numba", "a sample at a time in the cache, without temporaries"),
    ("sort_rows", "cpu"): (
        "numba",
        "radix sort, a feature a thread; int64 is left to torch",
    ),
    ("update_rows_", "cpu"): ("numba", "one pass over a batch's rows; torch's scatters are serial"),
    ("quantized_lookup", "cpu"): ("numba", "codes become numbers on their way into the sum"),
    **{
        (operator, "cuda"): ("triton", reason)
        for operator, reason in {
            "pooled_lookup": "sums rows of a bag in registers",
            "dot_interaction": "reads the rows and multiplies them in one pass",
            "cross_input_grad": "all layers' products, cut into vectors, in one pass",
            "update_rows_": "deterministic sums of runs of any length, applied in place",
            "logit_loss": "last layer, loss and gradients in one pass",
            "mlp_backward": "ReLU and bias gradient within the product (bf16, Hopper or newer)",
            "quantized_lookup": "codes become numbers in registers",
            "dense_update": "all parameters and their bf16 copy in one kernel",
        }.items()
    },
}
"""Name and reason, by operator and device, of what is not the definition."""


class Implementation(msgspec.Struct, frozen=True, kw_only=True):
    """What runs when an operator is called with tensors of a device."""

    operator: str
    """One of OPERATORS."""
    device: str
    """One of DEVICES."""
    name: str
    """torch: the definition, in torch's own operators; numba: compiled for the CPU; triton: for
    a GPU, where Triton is installed."""
    reason: str
    """Why this one."""


class Matmul(msgspec.Struct, frozen=True, kw_only=True):
    """How float32 matrices are multiplied on the CPU, and what the choice rests on."""

    way: Way
    """default: what torch takes by itself; onednn: its precision "medium"."""
    gflop_s: dict[str, float]
    """By way, and "bf16": medians of a few products."""
    error: dict[str, float]
    """By way: root mean square, relative to float64."""
    reason: str
    """In words."""


def implementations() -> list[Implementation]:
    """The implementation of every operator on every device."""
    definition = ("torch", "the only one for this device")
    found = []
    for operator in OPERATORS:
        for device in DEVICES:
            name, reason = COMPILED.get((operator, device), definition)
            found.append(Implementation(operator=operator, device=device, name=name, reason=reason))
    return found
