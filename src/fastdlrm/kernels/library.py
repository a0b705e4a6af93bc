"""Registers an operator with torch: a definition, autograd, shapes, and faster implementations.

The definition, in torch's own operators, serves every device; an implementation for one device
takes its place there. So torch's dispatcher picks, and `torch.compile` and `torch.export` see one
node of known shape.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

NAMESPACE = "fastdlrm"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_DEFINITIONS: dict[str, "Function"] = {}

Function = Callable[..., Any]


def has_gpu_kernels() -> bool:
    """Whether the implementations in Triton can run: a GPU is there, and Triton is installed."""
    return torch.cuda.is_available() and find_spec("triton") is not None


def define(
    schema: str,
    definition: Function,
    *,
    fake: Function | None = None,
    backward: Function | None = None,
    setup_context: Function | None = None,
) -> Any:
    """Register an operator.

    Args:
        schema: Name, arguments and results in torch's schema language.
        definition: Computes it on any device, without autograd.
        fake: Gives results of the right shape without computing; None: by the definition, where
            all it does is known to torch.
        backward: As `torch.library.register_autograd` takes it; None: not differentiable.
        setup_context: Likewise.

    Returns:
        The operator, to be called.
    """
    name = schema.partition("(")[0]
    _DEFINITIONS[name] = definition
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, definition, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake or definition, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY
        )
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def implement(name: str, device: str, implementation: Function) -> None:
    """Put an implementation in the place of the definition on one kind of device.

    On a GPU float64 stays with the definition: it is for checking gradients.

    Args:
        name: Of a defined operator.
        device: "cpu" or "cuda".
        implementation: Takes and returns what the definition does.
    """
    definition = _DEFINITIONS[name]

    def run(*args: Any) -> Any:
        is_exact = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in args)
        return definition(*args) if is_exact else implementation(*args)

    _LIBRARY.impl(name, run if device == "cuda" else implementation, device.upper())


def on_first_call(module: str, name: str) -> Function:
    """A function of a module that is imported when it is first called.

    A compiler takes half a second to import, and a process that computes elsewhere needs none.

    Args:
        module: Full name.
        name: Of the function.
    """
    loaded: list[Function] = []

    def call(*args: Any) -> Any:
        if not loaded:
            loaded.append(getattr(import_module(module), name))
        return loaded[0](*args)

    return call
