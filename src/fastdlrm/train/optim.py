"""The optimizer of the MLPs and the optimizer of the tables.

Invariants: the tables' optimizer moves only the rows that a batch reads, and their state;
micro-batches give exactly the gradient of the whole batch.

Shapes: B batch, F sparse features, D embedding dim, R rows of all tables.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from fastdlrm.batch import SparseBatch
from fastdlrm.checkpoint import store
from fastdlrm.kernels.row_gradient import RowGradient, row_gradient
from fastdlrm.kernels.row_update import (
    adagrad_update_,
    adam_update_,
    rowwise_adagrad_update_,
    sgd_update_,
)
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.train.config import DenseOptimizerConfig, SparseOptimizerConfig


def build_dense_optimizer(
    config: DenseOptimizerConfig, params: Iterable[nn.Parameter]
) -> Optimizer:
    """The MLPs' optimizer, all parameters updated in one call.

    Args:
        config: Name and numbers.
        params: All on one device; at least one.
    """
    params = list(params)
    # torch updates Adagrad on a GPU by lists of tensors, everything else in one kernel.
    is_fused = config.name != "adagrad" or params[0].device.type == "cpu"
    common: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "fused": is_fused or None,
    }
    if config.name == "sgd":
        return SGD(params, **common)
    kinds = {"adagrad": Adagrad, "adam": Adam, "adamw": AdamW}
    return kinds[config.name](params, eps=config.eps, **common)


class SparseOptimizer:
    """The tables' optimizer: collects the gradients of pooled vectors, then updates their rows.

    A step is: `accumulate` for each micro-batch, `squared_norm` if gradients are clipped, `step`.
    """

    def __init__(self, config: SparseOptimizerConfig, tables: EmbeddingTables) -> None:
        """Make the state, on the tables' device.

        Args:
            config: Name and numbers.
            tables: What to train; they stay on their device from here on.
        """
        self._config = config
        self._tables = tables
        self._weight = tables.weight.detach()
        self._state = _zero_state(config.name, self._weight)
        self._num_steps = torch.zeros((), dtype=torch.int64)
        self._batches: list[SparseBatch] = []
        self._grads_FBD: list[Tensor] = []
        self._gradient: RowGradient | None = None

    def accumulate(self, sparse: SparseBatch, grad_pooled: Tensor) -> None:
        """Add a micro-batch.

        Args:
            sparse: What was looked up.
            grad_pooled: Gradient of the lookup's result, shape (B, F, D); not altered.
        """
        self._batches.append(sparse)
        self._grads_FBD.append(grad_pooled.transpose(0, 1))
        self._gradient = None

    def squared_norm(self) -> Tensor:
        """Sum of the squares of the accumulated gradient, without l2: a scalar on the device."""
        gradient = self._accumulated()
        return self._weight.new_zeros(()) if gradient is None else gradient.values.square().sum()

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float | Tensor = 1.0) -> None:
        """Update the rows of the accumulated micro-batches and forget these.

        Args:
            learning_rate: After the schedule.
            scale: Factor on the gradient, from clipping; l2 is added afterwards.
        """
        self._num_steps += 1
        gradient = self._accumulated()
        if gradient is None:
            return
        rows, values = gradient
        if isinstance(scale, Tensor) or scale != 1:
            values = values * scale
        if self._config.l2:
            values = values.add(self._weight.index_select(0, rows), alpha=self._config.l2)
        self._update(RowGradient(rows, values), learning_rate)
        self._batches, self._grads_FBD, self._gradient = [], [], None

    def state_tensors(self) -> dict[str, Tensor]:
        """Live tensors by name, each table on its own; copying into one changes the state."""
        named = {
            f"tables.{table}.{name}": self._tables.of_table(table, stacked)
            for name, stacked in self._state.items()
            for table in self._tables.num_embeddings
        }
        return {**named, "num_steps": self._num_steps}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `state_tensors` gave.

        Raises:
            CheckpointError: Names or shapes are another optimizer's or model's.
        """
        store.copy_into(self.state_tensors(), tensors, "sparse optimizer")

    def _accumulated(self) -> RowGradient | None:
        """The gradient of all micro-batches as of one batch; None before the first."""
        if self._gradient is None and self._batches:
            sparse, grads = SparseBatch.concat(self._batches), self._grads_FBD
            grad_FBD = grads[0] if len(grads) == 1 else torch.cat(grads, 1)
            self._gradient = row_gradient(
                grad_FBD.flatten(0, 1),
                self._tables.rows(sparse),
                None if sparse.lengths is None else sparse.offsets(),
                sparse.weights,
                self._tables.pooling,
            )
        return self._gradient

    def _update(self, gradient: RowGradient, learning_rate: float) -> None:
        weight, state, eps = self._weight, self._state, self._config.eps
        if self._config.name == "sgd":
            sgd_update_(weight, gradient, learning_rate=learning_rate)
        elif self._config.name == "adagrad":
            adagrad_update_(
                weight, state["square_sum"], gradient, learning_rate=learning_rate, eps=eps
            )
        elif self._config.name == "rowwise_adagrad":
            rowwise_adagrad_update_(
                weight, state["square_sum"], gradient, learning_rate=learning_rate, eps=eps
            )
        else:
            adam_update_(
                weight,
                state["first"],
                state["second"],
                gradient,
                step=int(self._num_steps),
                learning_rate=learning_rate,
                eps=eps,
            )


def _zero_state(name: str, weight: Tensor) -> dict[str, Tensor]:
    """An optimizer's tensors by name; the first dimension of each is R."""
    if name == "sgd":
        return {}
    if name == "adagrad":
        return {"square_sum": torch.zeros_like(weight)}
    if name == "rowwise_adagrad":
        return {"square_sum": weight.new_zeros(weight.shape[0])}
    return {"first": torch.zeros_like(weight), "second": torch.zeros_like(weight)}
