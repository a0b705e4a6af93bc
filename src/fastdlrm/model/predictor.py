"""A trained model's forward pass alone, as few operators as it takes.

Invariants: in float32 the logits are the model's up to rounding; the last linear layer is computed
in float32 whatever the type, since a logit in 16 bits would move probabilities. On the CPU a
sample's logit has the same bits whatever other samples are in the batch, and however many: what a
server answers is what a prediction of the whole file says.

Shapes: B batch, N dense features, F sparse features, D embedding dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.mlp import MIN_COLUMNS, MIN_ROWS, row_linear
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.evaluated import Linear, evaluated, linear_layers, through

WIDTH_MULTIPLE = 8
"""The top MLP's input is widened by zeros to a multiple of this: matrix products are faster."""


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
        self._bottom = evaluated(linear_layers(model.bottom_mlp), dtype)
        first, *others = linear_layers(model.top_mlp)
        width = -(-first.weight.shape[1] // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        projection = model.table_projection
        self._project = None if projection is None else projection.evaluated(dtype)
        self._join = model.interaction.evaluated(dtype, width)
        *top, last = (_widened(first, width), *others)
        self._top = evaluated(top, dtype)
        (self._last,) = evaluated([_with_more_outputs(last)], torch.float32)

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
        if self._project is not None:
            pooled = self._project(pooled)
        vector = None if model.bottom_mlp is None else self._through_bottom(dense)
        hidden = self._through_top(self._join(vector, pooled))
        logits = row_linear(hidden, self._last.pieces, self._last.bias, relu=False)
        return logits[:B, 0].contiguous()

    def _through_bottom(self, dense: Tensor) -> Tensor:
        """The bottom MLP, shape (B, D), of type `dtype`."""
        return through(self._bottom, dense.to(self.dtype))

    def _through_top(self, joined: Tensor) -> Tensor:
        """The hidden layers of the top MLP, float32."""
        return through(self._top, joined.to(self.dtype)).float() if self._top else joined.float()


def _widened(layer: Linear, width: int) -> Linear:
    """A layer whose input is widened by zeros."""
    return layer._replace(weight=F.pad(layer.weight, (0, width - layer.weight.shape[1])))


def _with_more_outputs(last: Linear) -> Linear:
    """The output layer with outputs of zero beside its one; see `MIN_COLUMNS`."""
    more = MIN_COLUMNS - len(last.weight) if not last.weight.is_cuda else 0
    return last._replace(
        weight=F.pad(last.weight, (0, 0, 0, more)), bias=F.pad(last.bias, (0, more))
    )
