"""A trained model's forward pass alone, as few operators as it takes.

Invariants: in float32 the logits are the model's up to rounding; the last linear layer is computed
in float32 whatever the type, since a logit in 16 bits would move probabilities.

Shapes: B batch, N dense features, F sparse features, D embedding dim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.interaction import cat_interaction, dot_interaction
from fastdlrm.kernels.mlp import linear_relu
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.mlp import layers_of

WIDTH_MULTIPLE = 8
"""The top MLP's input is widened by zeros to a multiple of this: matrix products are faster."""


class _Linear(NamedTuple):
    """A linear layer's tensors: shape (N, K) and (N,)."""

    weight: Tensor
    bias: Tensor


class Predictor:
    """Predicts with the weights that the model has when this is made; train on, and make another.

    Attributes:
        dtype: Of the matrix products.
    """

    def __init__(self, model: DLRM, dtype: torch.dtype = torch.float32) -> None:
        """Take the weights over.

        Args:
            model: Stays as it is; its tables are shared, not copied.
            dtype: float32, or bfloat16: faster on many processors, and coarser.
        """
        self.dtype = dtype
        self._model = model
        self._is_plain = all(
            isinstance(module, nn.Linear | nn.ReLU | nn.Dropout)
            for mlp in (model.bottom_mlp, model.top_mlp)
            for module in layers_of(mlp)
        )
        if not self._is_plain:
            return
        self._bottom = [_taken(linear, dtype) for linear in _linears(model.bottom_mlp)]
        *top, last = _linears(model.top_mlp)
        width = -(-(top[0] if top else last).in_features // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        widths = [width] + [0] * len(top)
        dtypes = [dtype] * len(top) + [torch.float32]
        *self._top, self._last = [
            _taken(linear, kind, wide)
            for linear, kind, wide in zip((*top, last), dtypes, widths, strict=True)
        ]

    @torch.inference_mode()
    def __call__(self, dense: Tensor, sparse: SparseBatch) -> Tensor:
        """Predict.

        Args:
            dense: Shape (B, N), float32; N may be 0.
            sparse: F features of B samples.

        Returns:
            Logits, shape (B,), float32.
        """
        if not self._is_plain:
            return self._by_model(dense, sparse)
        model = self._model
        vector = _through(self._bottom, dense.to(self.dtype)) if self._bottom else None
        pooled = model.tables(sparse, self.dtype)
        if not pooled.shape[1]:  # a batch without sparse features does not know its B
            pooled = pooled.new_empty(len(dense), 0, pooled.shape[2])
        width = (self._top[0] if self._top else self._last).weight.shape[1]
        if model.interaction == "dot":
            joined = dot_interaction(vector, pooled, model.include_diagonal, width)
        else:
            joined = cat_interaction(vector, pooled)
            joined = nn.functional.pad(joined, (0, width - joined.shape[1]))
        hidden = _through(self._top, joined).float()
        return nn.functional.linear(hidden, *self._last).squeeze(1)

    def _by_model(self, dense: Tensor, sparse: SparseBatch) -> Tensor:
        model, was_training = self._model, self._model.training
        is_plain = self.dtype == torch.float32
        model.eval()
        try:
            with torch.autocast(dense.device.type, self.dtype, enabled=not is_plain):
                return model(dense, sparse).float()
        finally:
            model.train(was_training)


def _through(layers: Sequence[_Linear], x: Tensor) -> Tensor:
    """Linear, ReLU, linear, ReLU, ..."""
    for weight, bias in layers:
        x = linear_relu(x, weight, bias)
    return x


def _taken(linear: nn.Linear, dtype: torch.dtype, width: int = 0) -> _Linear:
    """A layer's tensors in a type, its input widened by zeros."""
    weight = linear.weight.detach()
    if missing := max(width - linear.in_features, 0):
        weight = nn.functional.pad(weight, (0, missing))
    return _Linear(weight.to(dtype), linear.bias.detach().to(dtype))


def _linears(mlp: nn.Module | None) -> list[nn.Linear]:
    return [module for module in layers_of(mlp) if isinstance(module, nn.Linear)]
