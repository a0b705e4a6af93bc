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

from fastdlrm.kernels.library import define, has_gpu_kernels, implement, on_first_call

if has_gpu_kernels():
    from fastdlrm.kernels.cuda import mlp as gpu

FUSED_NUMBERS = 2**14
"""Below this many outputs another call costs more than another pass over them."""


MIN_ROWS = 16
"""From so many rows on, MKL's and oneDNN's products give a row the same bits whatever their number;
for fewer they have kernels that sum in another order."""

MIN_COLUMNS = 16
"""The same for the columns of a product: a single one is summed in pieces that depend on B."""

PIECE_INPUTS = 256
"""Up to so many inputs both sum a number in one go. Of more, where the rows are few, threads sum a
share each, so that the bits depend on the number of threads and of rows (seen from 384 on)."""


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


def mlp_forward(x: Tensor, layers: Sequence[Layer], *, relu_last: bool = True) -> list[Tensor]:
    """Linear, ReLU, linear, ReLU, ...

    Args:
        x: Shape (B, K) of the first layer.
        layers: In order; may be empty.
        relu_last: Whether the last layer ends in ReLU as the others do.

    Returns:
        The input and each layer's output: what the backward pass needs. The last is the result.
    """
    activations = [x]
    for index, layer in enumerate(layers, 1):
        call = linear_relu if relu_last or index < len(layers) else F.linear
        activations.append(call(activations[-1], layer.weight, layer.bias))
    return activations


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """max(x weight^T + bias, 0).

    Args:
        x: Shape (B, K).
        weight: Shape (N, K), of `x`'s type; `bias` likewise.
        bias: Shape (N,).
    """
    if x.is_cuda:  # bias and ReLU within the matrix product
        return torch._addmm_activation(bias, x, weight.t())
    is_large = x.shape[0] * weight.shape[0] >= FUSED_NUMBERS
    if is_large and x.device.type == "cpu" and x.dtype == torch.float32:
        # torch would copy the bias into the result before the product, and go over it twice
        y = x @ weight.t()
        _bias_relu_(y, bias)
        return y
    return F.linear(x, weight, bias).relu_()


def weight_pieces(weight: Tensor) -> tuple[Tensor, ...]:
    """A layer's weight as `row_linear` takes it; a copy on the CPU.

    Args:
        weight: Shape (N, K); on the CPU N > 1: see `MIN_COLUMNS`.

    Returns:
        On the CPU pieces of shape (k, N), of about equal k up to `PIECE_INPUTS`; elsewhere the
        weight.
    """
    if weight.is_cuda:
        return (weight,)
    count = -(-weight.shape[1] // PIECE_INPUTS)
    return tuple(piece.t().contiguous() for piece in weight.tensor_split(max(count, 1), 1))


def row_linear(x: Tensor, pieces: Sequence[Tensor], bias: Tensor | None, relu: bool) -> Tensor:
    """x weight^T + bias, or its maximum with 0: on the CPU each row's bits are its own.

    There, `linear_relu` and torch's own layers round a row differently in batches of other sizes
    and on other numbers of threads.

    Args:
        x: Shape (B, K); on the CPU B >= `MIN_ROWS`.
        pieces: Of the weight, of `x`'s type, as `weight_pieces` makes them.
        bias: Shape (N,), likewise; None for none, and no ReLU.
        relu: Whether ReLU follows.
    """
    first, *others = pieces
    if x.is_cuda:
        return F.linear(x, first, bias) if bias is None or not relu else linear_relu(x, first, bias)
    if others:
        at = len(first)
        y = x[:, :at] @ first
        for piece in others:
            y.addmm_(x[:, at : at + len(piece)], piece)
            at += len(piece)
    else:
        y = x @ first
    if bias is None:
        return y
    if relu and y.dtype == torch.float32 and y.numel() >= FUSED_NUMBERS:
        _bias_relu_(y, bias)
        return y
    y.add_(bias)
    return y.relu_() if relu else y


def mlp_backward(
    grad: Tensor,
    activations: Sequence[Tensor],
    layers: Sequence[Layer],
    *,
    needs_input_grad: bool,
    accumulate: bool = False,
    grad_sum: Tensor | None = None,
) -> Tensor | None:
    """The gradients of all parameters, and of the input.

    Args:
        grad: Gradient of the last layer's result before its ReLU, if any, shape (B, N), of the
            compute type; with no layers the gradient of the input. Used up.
        activations: As `mlp_forward` returned them.
        layers: The same layers; their gradients are written.
        needs_input_grad: Whether the input's gradient is asked for.
        accumulate: Whether to add to the layers' gradients instead.
        grad_sum: Column sums of `grad`, shape (N,), float32, where they are known already.

    Returns:
        Gradient of the input, shape (B, K) of the first layer; None where not asked for.
    """
    if layers:
        sums = None if grad_sum is None else grad_sum.unsqueeze(0)
        bias_gradient(layers[-1].bias_grad, grad, sums, accumulate)
    for index in range(len(layers) - 1, -1, -1):
        layer, x = layers[index], activations[index]
        weight_gradient(layer.weight_grad, grad, x, accumulate)
        if index == 0:
            return grad @ layer.weight if needs_input_grad else None
        below = layers[index - 1].bias_grad
        if has_gpu_kernels() and gpu.can_mask_input_grad(grad, layer.weight, x):
            grad, sums = gpu.masked_input_grad(grad, layer.weight, x)
            bias_gradient(below, grad, sums, accumulate)
        else:
            grad = grad @ layer.weight
            relu_backward_(grad, x, below, accumulate)
    return grad


def weight_gradient(weight_grad: Tensor, grad: Tensor, x: Tensor, accumulate: bool) -> None:
    """Write or add the gradient of a layer's weight.

    Args:
        weight_grad: Shape (N, K), float32.
        grad: Of the layer's result, shape (B, N), of the compute type.
        x: Its input, shape (B, K), likewise.
        accumulate: Whether to add.
    """
    if accumulate:
        weight_grad.add_(grad.t() @ x)
    elif grad.dtype == torch.float32:
        torch.mm(grad.t(), x, out=weight_grad)
    elif grad.is_cuda:
        torch.mm(grad.t(), x, out_dtype=torch.float32, out=weight_grad)
    else:
        weight_grad.copy_(grad.t() @ x)


def bias_gradient(bias_grad: Tensor, grad: Tensor, sums: Tensor | None, accumulate: bool) -> None:
    """Write or add the gradient of a layer's bias: the column sums of the result's.

    Args:
        bias_grad: Shape (N,), float32.
        grad: Of the layer's result, shape (B, N), of the compute type.
        sums: Of its columns, in parts, shape (any, N), float32; None: not known yet.
        accumulate: Whether to add.
    """
    if accumulate:
        bias_grad.add_(torch.sum(grad if sums is None else sums, 0, dtype=bias_grad.dtype))
    elif sums is not None:
        torch.sum(sums, 0, out=bias_grad)
    elif has_gpu_kernels() and grad.is_cuda and grad.dtype != torch.float32:
        gpu.column_sums(grad, bias_grad)
    else:
        torch.sum(grad, 0, dtype=bias_grad.dtype, out=bias_grad)


def define_bias_relu_(x: Tensor, bias: Tensor) -> None:
    """The definition: x = max(x + bias, 0)."""
    x.add_(bias).relu_()


def define_relu_backward_(grad: Tensor, y: Tensor, bias_grad: Tensor, accumulate: bool) -> None:
    """The definition: grad = 0 where y <= 0, and its sum over samples is the bias' gradient."""
    torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)
    if accumulate:
        bias_grad.add_(grad.sum(0, dtype=bias_grad.dtype))
    else:
        torch.sum(grad, 0, dtype=bias_grad.dtype, out=bias_grad)


_bias_relu_ = define("bias_relu_(Tensor(a!) x, Tensor bias) -> ()", define_bias_relu_)
relu_backward_ = define(
    "relu_backward_(Tensor(a!) grad, Tensor y, Tensor(b!) bias_grad, bool accumulate) -> ()",
    define_relu_backward_,
)
implement("bias_relu_", "cpu", on_first_call("fastdlrm.kernels.cpu.mlp", "bias_relu_"))
implement("relu_backward_", "cpu", on_first_call("fastdlrm.kernels.cpu.mlp", "relu_backward_"))
