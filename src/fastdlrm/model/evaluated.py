"""Linear layers as they compute in prediction, whatever mode their model is in.

Shapes: B batch, K inputs and N outputs of a layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdlrm.kernels.mlp import row_linear, weight_pieces
from fastdlrm.model.mlp import layers_of


class Linear(NamedTuple):
    """A linear layer's tensors, shape (N, K) and (N,), and what is behind it."""

    weight: Tensor
    bias: Tensor
    norm: nn.Module | None = None
    relu: bool = False


class EvaluatedLayer(NamedTuple):
    """A linear layer as it is computed.

    Attributes:
        pieces: Its weight, as `weight_pieces` makes them.
        bias: Shape (N,).
        norm: The normalisation behind it.
        relu: Whether ReLU follows.
    """

    pieces: tuple[Tensor, ...]
    bias: Tensor
    norm: nn.Module | None
    relu: bool


def linear_layers(mlp: nn.Module | None) -> list[Linear]:
    """The linear layers of an MLP, each with the normalisation and the ReLU that follow it."""
    found: list[Linear] = []
    for module in layers_of(mlp):
        if isinstance(module, nn.Linear):
            found.append(Linear(module.weight.detach(), module.bias.detach()))
        elif isinstance(module, nn.ReLU):
            found[-1] = found[-1]._replace(relu=True)
        elif not isinstance(module, nn.Dropout):
            found[-1] = found[-1]._replace(norm=_Evaluated(module))
    return found


def evaluated(layers: Sequence[Linear], dtype: torch.dtype) -> list[EvaluatedLayer]:
    """Copies of layers in the type of their products."""
    return [
        EvaluatedLayer(weight_pieces(weight.to(dtype)), bias.to(dtype), norm, relu)
        for weight, bias, norm, relu in layers
    ]


def through(layers: Sequence[EvaluatedLayer], x: Tensor) -> Tensor:
    """Linear, norm, ReLU, linear, norm, ReLU, ...; a norm is followed by ReLU."""
    for pieces, bias, norm, relu in layers:
        x = row_linear(x, pieces, bias, relu=relu and norm is None)
        if norm is not None:
            x = norm(x.float()).relu_().to(x.dtype)
    return x


class _Evaluated(nn.Module):
    """A normalisation as it computes in evaluation, whatever mode the model is in."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.BatchNorm1d):
            moments = norm.running_mean, norm.running_var
            return F.batch_norm(x, *moments, norm.weight, norm.bias, eps=norm.eps)
        y: Tensor = norm(x)
        return y
