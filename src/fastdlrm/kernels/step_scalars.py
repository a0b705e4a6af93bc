"""The numbers of an optimizer's update that change from step to step, as one small tensor.

A tensor, so that a captured graph reads new numbers at every replay.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class StepScalars(NamedTuple):
    """One step's numbers, in the order of the tensor.

    Attributes:
        learning_rate: After the schedule.
        first_correction: 1 - b1^t, for the start of Adam's first moment.
        second_correction: 1 - b2^t, likewise.
        gradient_scale: Factor on the gradient, from clipping; l2 is added afterwards.
        rounding_seed: Another one each step, for rounding to 16 bits; a whole number.
    """

    learning_rate: float
    first_correction: float = 1.0
    second_correction: float = 1.0
    gradient_scale: float = 1.0
    rounding_seed: float = 0.0

    @classmethod
    def of_step(cls, learning_rate: float, step: int, betas: tuple[float, float]) -> "StepScalars":
        """The numbers of an optimizer's t-th step.

        Args:
            learning_rate: After the schedule.
            step: t, from 1.
            betas: b1 and b2.
        """
        b1, b2 = betas
        return cls(learning_rate, 1 - b1**step, 1 - b2**step, 1.0, float(step % 2**24))

    def tensor(self, device: torch.device, gradient_scale: float | Tensor = 1.0) -> Tensor:
        """As a tensor.

        Args:
            device: Where the update runs.
            gradient_scale: In the place of the field; a tensor need not leave the device.

        Returns:
            Shape (5,): float64 on the CPU, where it is read back exactly, float32 elsewhere.
        """
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        if not isinstance(gradient_scale, Tensor):
            numbers = self._replace(gradient_scale=gradient_scale)
            return torch.tensor(numbers, dtype=dtype, device=device)
        packed = torch.tensor(self, dtype=dtype, device=device)
        packed[self._fields.index("gradient_scale")] = gradient_scale
        return packed
