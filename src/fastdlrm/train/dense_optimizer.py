"""All parameters but the tables' in one flat tensor, and their optimizer.

Invariants: every parameter is a view of `master`, its `.grad` a view of `gradient`, laid out alike,
and the copy in the compute type too; so an update, a cast or a sum over ranks is one call.

Shapes: n numbers of all parameters together, padding included.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from fastdlrm.kernels.dense_update import DenseRule, dense_update_
from fastdlrm.kernels.mlp import Layer
from fastdlrm.kernels.step_scalars import StepScalars
from fastdlrm.train.config import DenseOptimizerConfig

START_NUMBERS = 64
"""Each parameter begins at a multiple of this many numbers, for aligned access."""


class DenseOptimizer:
    """Moves the parameters into flat storage and trains them there.

    Attributes:
        master: All parameters, shape (n,), float32.
        gradient: Their gradients, shape (n,), float32.
        compute: All parameters in the compute type, shape (n,); `master` itself for float32.
    """

    def __init__(
        self,
        config: DenseOptimizerConfig,
        parameters: Mapping[str, nn.Parameter],
        *,
        compute_dtype: torch.dtype = torch.float32,
        width_multiple: int = 1,
    ) -> None:
        """Take over the parameters.

        Args:
            config: Name and numbers.
            parameters: By name, all on one device, float32; at least one. Their storage changes,
                their values do not.
            compute_dtype: Of `compute`.
            width_multiple: Widths of layers, in and out, are padded with zeros to a multiple
                of this; the padding stays zero as long as its gradient does.
        """
        self._rule = DenseRule(config.name, config.eps, config.weight_decay)
        self._parameters = dict(parameters)
        self._width_multiple = width_multiple
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        size = 0
        for name, parameter in self._parameters.items():
            padded = tuple(self.padded(extent) for extent in parameter.shape)
            self._places[name] = (size, padded)
            size += _up_to(START_NUMBERS, prod(padded))
        device = next(iter(self._parameters.values())).device
        self.master = torch.zeros(size, device=device)
        self.gradient = torch.zeros(size, device=device)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._view(name, self.master).copy_(parameter)
                parameter.data = self._view(name, self.master)
                parameter.grad = self._view(name, self.gradient)
        is_master = compute_dtype == torch.float32
        self.compute = self.master if is_master else self.master.to(compute_dtype)
        self._state = self._rule.zero_state(self.master)
        self._num_steps = torch.zeros((), dtype=torch.int64)

    def layer(self, prefix: str, *, pad_outputs: bool, master: bool = False) -> Layer:
        """A linear layer's tensors, of the parameters `{prefix}.weight` and `{prefix}.bias`.

        Args:
            prefix: Of the layer.
            pad_outputs: Whether the outputs are padded too; the inputs always are.
            master: Whether weight and bias are the float32 ones.
        """
        outputs = None if pad_outputs else self._parameters[f"{prefix}.weight"].shape[0]
        pairs = (self.tensors(f"{prefix}.{name}", master=master) for name in ("weight", "bias"))
        values, grads = zip(*pairs, strict=True)
        return Layer(*(x[:outputs] for x in (*values, *grads)))

    def tensors(self, name: str, *, master: bool = False) -> tuple[Tensor, Tensor]:
        """A parameter in the compute type and its gradient, both padded.

        Args:
            name: Of the parameter.
            master: Whether it is the float32 one.
        """
        values = self.master if master else self.compute
        return self._padded(name, values), self._padded(name, self.gradient)

    def padded(self, width: int) -> int:
        """A width as it is padded."""
        return _up_to(self._width_multiple, width)

    def gradient_of(self, *prefixes: str) -> Tensor:
        """The gradients of all parameters whose names begin so, as one slice of `gradient`.

        Args:
            prefixes: Of parameters that follow one another.
        """
        starts = [start for name, (start, _) in self._places.items() if name.startswith(prefixes)]
        if not starts:
            return self.gradient[:0]
        later = [start for start, _ in self._places.values() if start > starts[-1]]
        return self.gradient[starts[0] : min(later, default=len(self.gradient))]

    def zero_grad(self) -> None:
        """Forget the gradient, before one is accumulated by autograd."""
        self.gradient.zero_()

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the gradient: a scalar on the device."""
        return self.gradient.square().sum()

    def step(self, learning_rate: float, scale: float | Tensor = 1.0) -> None:
        """Update all parameters, and their copy in the compute type; the gradient is used up.

        Args:
            learning_rate: After the schedule.
            scale: Factor on the gradient, from clipping.
        """
        self.apply(self.next_scalars(learning_rate).tensor(self.master.device, scale))

    def next_scalars(self, learning_rate: float) -> StepScalars:
        """Count a step and give its numbers; `apply` does it."""
        self._num_steps += 1
        return StepScalars.of_step(learning_rate, int(self._num_steps), self._rule.betas)

    def apply(self, scalars: Tensor) -> None:
        """The part of a step that runs on the device.

        Args:
            scalars: `next_scalars` as a tensor.
        """
        compute = None if self.compute is self.master else self.compute
        dense_update_(self.master, self._state, self.gradient, self._rule, scalars, compute)

    def refresh(self) -> None:
        """Cast the parameters to the compute type again, after a change from outside."""
        if self.compute is not self.master:
            self.compute.copy_(self.master)

    def state_tensors(self) -> dict[str, Tensor]:
        """Live tensors by name, each parameter on its own; copying into one changes the state."""
        named = {
            f"{parameter}.{name}": self._view(parameter, flat)
            for name, flat in self._state.items()
            for parameter in self._parameters
        }
        return {**named, "num_steps": self._num_steps}

    def _padded(self, name: str, flat: Tensor) -> Tensor:
        start, shape = self._places[name]
        return flat[start : start + prod(shape)].view(shape)

    def _view(self, name: str, flat: Tensor) -> Tensor:
        return self._padded(name, flat)[tuple(map(slice, self._parameters[name].shape))]


def _up_to(multiple: int, number: int) -> int:
    """The least multiple that is not below a number."""
    return -(-number // multiple) * multiple
