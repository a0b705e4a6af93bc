"""Linear layers with ReLU, forward and backward, without autograd.

Parameters come in the compute type; gradients of parameters are written in float32, into tensors
that the caller owns. The caller may widen an input by zero columns, for the alignment that fast
matrix products want: then the weight has as many more.

Shapes: B batch, K inputs and N outputs of a layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layer(NamedTuple):
    """A linear layer's tensors.

    Attributes:
        weight: Shape (N, K), of the compute type.
        bias: Shape (N,), of the compute type.
        weight_grad: Shape (N, K), float32.
        bias_grad: Shape (N,), float32.
    """

    weight: Tensor
    bias: Tensor
    weight_grad: Tensor
    bias_grad: Tensor


def mlp_forward(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Linear, ReLU, linear, ReLU, ...; every layer ends in ReLU.

    Args:
        x: Shape (B, K) of the first layer.
        layers: At least one.

    Returns:
        The input and each layer's output: what the backward pass needs. The last is the result.
    """
    activations = [x]
    for layer in layers:
        activations.append(F.linear(activations[-1], layer.weight, layer.bias).relu_())
    return activations


def mlp_backward(
    grad: Tensor,
    activations: Sequence[Tensor],
    layers: Sequence[Layer],
    *,
    needs_input_grad: bool,
    accumulate: bool = False,
) -> Tensor | None:
    """The gradients of all parameters, and of the input.

    Args:
        grad: Gradient of the result, shape (B, N) of the last layer, of the compute type.
        activations: As `mlp_forward` returned them.
        layers: The same layers; their gradients are written.
        needs_input_grad: Whether the input's gradient is asked for.
        accumulate: Whether to add to the layers' gradients instead.

    Returns:
        Gradient of the input, shape (B, K) of the first layer; None where not asked for.
    """
    for index in range(len(layers) - 1, -1, -1):
        layer, x, y = layers[index], activations[index], activations[index + 1]
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        _parameter_grads(layer, x, grad, accumulate)
        if index == 0 and not needs_input_grad:
            return None
        grad = grad @ layer.weight
    return grad


def _parameter_grads(layer: Layer, x: Tensor, grad: Tensor, accumulate: bool) -> None:
    """Write or add the gradients of a layer's weight and bias."""
    if accumulate:
        layer.weight_grad.add_(grad.t() @ x)
        layer.bias_grad.add_(grad.sum(0, dtype=torch.float32))
    elif grad.dtype == layer.weight_grad.dtype:
        torch.mm(grad.t(), x, out=layer.weight_grad)
        torch.sum(grad, 0, out=layer.bias_grad)
    else:
        layer.weight_grad.copy_(grad.t() @ x)
        torch.sum(grad, 0, dtype=torch.float32, out=layer.bias_grad)
