"""The optimizer of learned pooling weights: one number a row, which scales the row in every bag.

With G the gradient of a row as if its weight were 1 (the sum of the gradients of the bags that read
it, each times the id's own weight), the row E and its weight w have the gradients w G and <E, G>:
both follow from one sum, taken in a fixed order.

Shapes: R rows of a stack, D embedding dim, U rows that were read.
"""

import torch
from torch import Tensor

from fastdlrm.kernels.row_gradient import RowGradient
from fastdlrm.kernels.row_update import UpdateRule, apply_rule_
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.train.config import SparseOptimizerConfig

WHY_NO_GRAPH = "learned pooling weights take the sums of all rows' gradients before the update"
"""What keeps a step from being captured as a CUDA graph."""


class PoolingWeightOptimizer:
    """A step is: `split` the gradient, then `update`. l2 is left out: it draws weights to 0, not 1.

    Attributes:
        gradient: Of the weights, as `split` made it last: values of shape (U, 1).
        stacked_state: The rule's state by name, each of the whole stack, shape (R,), live.
    """

    gradient: RowGradient

    def __init__(self, config: SparseOptimizerConfig, tables: EmbeddingTables) -> None:
        """Make the state.

        Args:
            config: Name and numbers.
            tables: Whose weights are learned.
        """
        assert tables.pooling_weight is not None
        self._rows = tables.weight.detach()
        self._weight = tables.pooling_weight.detach().unsqueeze(1)
        self._rule = UpdateRule(config.name, config.eps)
        self._state = self._rule.zero_state(self._weight)
        self.stacked_state = {name: state.view(-1) for name, state in self._state.items()}

    @torch.no_grad()
    def split(self, summed: RowGradient) -> RowGradient:
        """The gradient of the rows; that of the weights is kept in `gradient`.

        Args:
            summed: As if all weights were 1; of some columns of the rows `gradient` is then a part.
        """
        rows, values = summed
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        dots = (self._rows.index_select(0, rows) * values).sum(1, keepdim=True)
        self.gradient = RowGradient(rows, dots)
        return RowGradient(rows, values * self._weight.index_select(0, rows))

    def squared_norm(self) -> Tensor:
        """Sum of the squares of `gradient`."""
        return self.gradient.values.square().sum()

    def update(self, scalars: Tensor) -> None:
        """Move the weights.

        Args:
            scalars: `StepScalars.tensor` of the step.
        """
        apply_rule_(self._weight, self._state, self.gradient, self._rule, scalars)


def pooling_weight_optimizer(
    config: SparseOptimizerConfig, tables: EmbeddingTables
) -> PoolingWeightOptimizer | None:
    """None where no weights are learned."""
    return None if tables.pooling_weight is None else PoolingWeightOptimizer(config, tables)
