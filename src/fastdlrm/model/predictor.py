"""A trained model's forward pass alone, as few operators as it takes.

Invariants: in float32 the logits are the model's up to rounding; the last linear layer is computed
in float32 whatever the type, since a logit in 16 bits would move probabilities. On the CPU a
sample's logit has the same bits whatever other samples are in the batch, and however many: what a
server answers is what a prediction of the whole file says.

Shapes: B batch, N dense features, F sparse features, D embedding dim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.interaction import cat_interaction, dot_interaction
from fastdlrm.kernels.mlp import MIN_COLUMNS, MIN_ROWS, row_linear, weight_pieces
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.mlp import layers_of

WIDTH_MULTIPLE = 8
"""The top MLP's input is widened by zeros to a multiple of this: matrix products are faster."""


class EvaluatedLayer(NamedTuple):
    """A linear layer as it is computed.

    Attributes:
        pieces: Its weight, as `weight_pieces` makes them.
        bias: Shape (N,).
        norm: The normalisation behind it.
    """

    pieces: tuple[Tensor, ...]
    bias: Tensor
    norm: nn.Module | None


class _Linear(NamedTuple):
    """A linear layer's tensors, shape (N, K) and (N,), and the normalisation behind it."""

    weight: Tensor
    bias: Tensor
    norm: nn.Module | None


class Predictor:
    """Predicts with the weights that the model has when this is made; train on, and make another.

    Attributes:
        dtype: Of the matrix products.
    """

    def __init__(self, model: DLRM, dtype: torch.dtype = torch.float32) -> None:
        """Take the weights over.

        Args:
            model: Stays as it is; its tables and normalisations are shared, not copied.
            dtype: float32, or bfloat16: faster on many processors, and coarser.
        """
        self.dtype = dtype
        self._model = model
        self._bottom = _evaluated(_layers(model.bottom_mlp), dtype)
        first, *others = _layers(model.top_mlp)
        self._width = -(-first.weight.shape[1] // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        *top, last = (_widened(first, self._width), *others)
        self._top = _evaluated(top, dtype)
        (self._last,) = _evaluated([_with_more_outputs(last)], torch.float32)

    @torch.inference_mode()
    def __call__(self, dense: Tensor, sparse: SparseBatch) -> Tensor:
        """Predict.

        Args:
            dense: Shape (B, N), float32; N may be 0.
            sparse: F features of B samples.

        Returns:
            Logits, shape (B,), float32.
        """
        return self.head(dense, self._model.tables(sparse, self.dtype))

    @torch.inference_mode()
    def head(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Everything after the lookup.

        Args:
            dense: Shape (B, N), float32.
            pooled: Shape (B, F, D), of type `dtype`.

        Returns:
            Logits, shape (B,), float32.
        """
        B, model = len(dense), self._model
        if not pooled.shape[1]:  # a batch without sparse features does not know its B
            pooled = pooled.new_empty(B, 0, pooled.shape[2])
        if not dense.is_cuda and B < MIN_ROWS:
            dense = F.pad(dense, (0, 0, 0, MIN_ROWS - B))
            pooled = F.pad(pooled, (0, 0, 0, 0, 0, MIN_ROWS - B))
        vector = None if model.bottom_mlp is None else self._through_bottom(dense)
        if model.interaction == "dot":
            joined = dot_interaction(vector, pooled, model.include_diagonal, self._width)
        else:
            joined = cat_interaction(vector, pooled)
            joined = F.pad(joined, (0, self._width - joined.shape[1]))
        hidden = self._through_top(joined)
        logits = row_linear(hidden, self._last.pieces, self._last.bias, relu=False)
        return logits[:B, 0].contiguous()

    def _through_bottom(self, dense: Tensor) -> Tensor:
        """The bottom MLP, shape (B, D), of type `dtype`."""
        return through(self._bottom, dense.to(self.dtype))

    def _through_top(self, joined: Tensor) -> Tensor:
        """The hidden layers of the top MLP, float32."""
        return through(self._top, joined).float()


def through(layers: Sequence[EvaluatedLayer], x: Tensor) -> Tensor:
    """Linear, norm, ReLU, linear, norm, ReLU, ..."""
    for pieces, bias, norm in layers:
        x = row_linear(x, pieces, bias, relu=norm is None)
        if norm is not None:
            x = norm(x.float()).relu_().to(x.dtype)
    return x


def _layers(mlp: nn.Module | None) -> list[_Linear]:
    """The linear layers of an MLP, each with the normalisation that follows it."""
    found: list[_Linear] = []
    for module in layers_of(mlp):
        if isinstance(module, nn.Linear):
            found.append(_Linear(module.weight.detach(), module.bias.detach(), None))
        elif not isinstance(module, nn.ReLU | nn.Dropout):
            found[-1] = found[-1]._replace(norm=_Evaluated(module))
    return found


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


def _evaluated(layers: Sequence[_Linear], dtype: torch.dtype) -> list[EvaluatedLayer]:
    return [
        EvaluatedLayer(weight_pieces(layer.weight.to(dtype)), layer.bias.to(dtype), layer.norm)
        for layer in layers
    ]


def _widened(layer: _Linear, width: int) -> _Linear:
    """A layer whose input is widened by zeros."""
    return layer._replace(weight=F.pad(layer.weight, (0, width - layer.weight.shape[1])))


def _with_more_outputs(last: _Linear) -> _Linear:
    """The output layer with outputs of zero beside its one; see `MIN_COLUMNS`."""
    more = MIN_COLUMNS - len(last.weight) if not last.weight.is_cuda else 0
    return last._replace(
        weight=F.pad(last.weight, (0, 0, 0, more)), bias=F.pad(last.bias, (0, more))
    )
