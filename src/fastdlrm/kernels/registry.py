"""Which implementation of each hot operator runs on which device, and why.

Importing this imports no torch, so a command can list the table at once.
"""

import msgspec

OPERATORS = ("pooled_lookup", "dot_interaction", "row_gradient", "row_update")
"""The hot operators, in the order of a training step."""

DEVICES = ("cpu", "cuda")


class Implementation(msgspec.Struct, frozen=True, kw_only=True):
    """What runs when an operator is called with tensors of a device."""

    operator: str
    """One of OPERATORS."""
    device: str
    """One of DEVICES."""
    name: str
    """torch: the definition, in torch's own operators."""
    reason: str
    """Why this one."""


def implementations() -> list[Implementation]:
    """The implementation of every operator on every device."""
    reason = "the only one for this device"
    return [
        Implementation(operator=operator, device=device, name="torch", reason=reason)
        for operator in OPERATORS
        for device in DEVICES
    ]
