"""What an inference request asks for besides its tensors.

Parameters are `timeout` (microseconds), `priority`, `top_k` and `binary_data_output`, by HTTP and
gRPC alike. Those of stateful models and of other servers' codecs (`IGNORED_PARAMETERS`) change
nothing here and are ignored; any other name is refused, so that a misspelt `timeout` does not pass
in silence.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from fastdlrm.contracts.tensors import quoted
from fastdlrm.errors import RequestError

IGNORED_PARAMETERS = frozenset(
    ("sequence_id", "sequence_start", "sequence_end", "content_type", "headers")
)
MAX_TIMEOUT_US = 2**53
"""About 285 years; larger ones lose microseconds as float seconds."""


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for besides its tensors."""

    timeout_us: int = 0
    """Time the answer may take, in microseconds; 0 = no limit of the client's."""
    priority: int = 0
    """1 is the highest, larger ones are lower; 0 = the server's default."""
    top_k: int | None = None
    """Answer the k best rows instead of all scores."""
    binary_data_output: bool = False
    """Answer in binary where an output does not say."""


NO_PARAMETERS = Parameters()


def read_parameters(found: Mapping[str, Any]) -> Parameters:
    """A request's parameters, checked; null is the same as absent.

    Raises:
        RequestError: An unknown name, or a value of another type or out of range.
    """
    if not found:
        return NO_PARAMETERS
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name in IGNORED_PARAMETERS or value is None:
            continue
        if name == "binary_data_output":
            if type(value) is not bool:
                raise wrong_parameter(name, value, "true or false")
            values[name] = value
        elif name == "timeout":
            values["timeout_us"] = bounded(name, value, 0, MAX_TIMEOUT_US, "microseconds, ")
        elif name == "priority":
            values[name] = bounded(name, value, 0, 2**32 - 1, "")
        elif name == "top_k":
            values[name] = bounded(name, value, 1, 2**31 - 1, "")
        else:
            raise RequestError(
                f"parameter {quoted(name)} is not known; allowed are timeout, priority, top_k, "
                "binary_data_output"
            )
    return Parameters(**values)


def bounded(name: str, value: Any, low: int, high: int, unit: str) -> int:
    """An integer parameter within its bounds; RequestError otherwise."""
    if type(value) is not int or not low <= value <= high:
        raise wrong_parameter(name, value, f"an integer, {unit}{low} to {high}")
    return value


def wrong_parameter(name: str, value: Any, allowed: str) -> RequestError:
    """The error of a parameter's value."""
    return RequestError(f"parameter '{name}' is {quoted(value)}; allowed is {allowed}")


def write_parameters(parameters: Parameters) -> dict[str, bool | int]:
    """Parameters by their names on the wire; those at their defaults are left out."""
    written: dict[str, bool | int] = {}
    if parameters.timeout_us:
        written["timeout"] = parameters.timeout_us
    if parameters.priority:
        written["priority"] = parameters.priority
    if parameters.top_k is not None:
        written["top_k"] = parameters.top_k
    if parameters.binary_data_output:
        written["binary_data_output"] = True
    return written
