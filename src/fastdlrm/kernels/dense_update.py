"""Optimizer updates of the MLPs: one call for all parameters, which lie in one flat tensor.

Shapes: n numbers of all parameters together.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastdlrm.kernels.library import has_gpu_kernels
from fastdlrm.kernels.step_scalars import StepScalars

if has_gpu_kernels():
    from fastdlrm.kernels.cuda import dense_update as gpu

RuleName = Literal["sgd", "adagrad", "adam", "adamw"]


class DenseRule(NamedTuple):
    """Which optimizer, and the numbers that stay the same at every step.

    Attributes:
        name: adamw decouples the weight decay; the others add it to the gradient.
        eps: Added to the denominator (not sgd).
        weight_decay: On every parameter alike.
        betas: Of adam and adamw.
    """

    name: RuleName
    eps: float = 1e-8
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def zero_state(self, master: Tensor) -> dict[str, Tensor]:
        """The rule's state before the first step, by name, each of shape (n,)."""
        names: dict[RuleName, tuple[str, ...]] = {
            "sgd": (),
            "adagrad": ("square_sum",),
            "adam": ("first", "second"),
            "adamw": ("first", "second"),
        }
        return {name: torch.zeros_like(master) for name in names[self.name]}


@torch.no_grad()
def dense_update_(
    master: Tensor,
    state: dict[str, Tensor],
    gradient: Tensor,
    rule: DenseRule,
    scalars: Tensor,
    compute: Tensor | None = None,
) -> None:
    """Apply a rule to all parameters; the gradient is used up.

    sgd: w -= lr g. adagrad: s += g^2; w -= lr g / (sqrt(s) + eps). adam, adamw: m and v as moving
    averages of g and g^2, corrected for their start; w -= lr m' / (sqrt(v') + eps).

    Args:
        master: w, shape (n,).
        state: As `rule.zero_state` made it.
        gradient: g, shape (n,); overwritten.
        rule: Optimizer.
        scalars: Of this step, `StepScalars.tensor`; lr among them.
        compute: Shape (n,), of a type of 16 bits; the updated parameters are copied there.

    Source: Duchi et al. 2011, JMLR 12; Kingma and Ba 2015, arXiv:1412.6980; Loshchilov and Hutter
    2019, arXiv:1711.05101.
    """
    if master.is_cuda and has_gpu_kernels():
        gpu.dense_update_(
            master, compute, list(state.values()), gradient, scalars, **rule._asdict()
        )
        return
    now = StepScalars(*scalars.tolist())
    if now.gradient_scale != 1:
        gradient.mul_(now.gradient_scale)
    if rule.weight_decay:
        if rule.name == "adamw":
            master.mul_(1 - now.learning_rate * rule.weight_decay)
        else:
            gradient.add_(master, alpha=rule.weight_decay)
    if rule.name == "sgd":
        master.add_(gradient, alpha=-now.learning_rate)
    elif rule.name == "adagrad":
        square_sum = state["square_sum"].addcmul_(gradient, gradient)
        master.addcdiv_(gradient, square_sum.sqrt().add_(rule.eps), value=-now.learning_rate)
    else:
        b1, b2 = rule.betas
        first = state["first"].lerp_(gradient, 1 - b1)
        second = state["second"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        denominator = second.sqrt().div_(math.sqrt(now.second_correction)).add_(rule.eps)
        master.addcdiv_(first, denominator, value=-now.learning_rate / now.first_correction)
    if compute is not None:
        compute.copy_(master)
