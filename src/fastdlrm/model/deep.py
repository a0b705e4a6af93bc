"""An interaction with an MLP beside it, on the same vectors.

Shapes: B batch, V vectors a sample, D embedding dim, W = V * D.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fastdlrm.kernels.interaction import cat_interaction
from fastdlrm.model.evaluated import evaluated, linear_layers, through
from fastdlrm.model.interaction import Cost, Interaction, Joined, widened


class DeepInteraction(Interaction):
    """The result of an interaction, then that of an MLP on all vectors side by side.

    Attributes:
        beside: The interaction.
        widths: Of the MLP's layers.
        deep_mlp: The MLP; every layer ends in ReLU.

    Source: the parallel structure of DCN, arXiv:1708.05123, and of DeepFM, arXiv:1703.04247.
    """

    def __init__(self, beside: Interaction, widths: tuple[int, ...], deep_mlp: nn.Module) -> None:
        super().__init__(beside.vectors, beside.width + widths[-1])
        self.is_logit = beside.is_logit
        self.beside = beside
        self.widths = widths
        self.deep_mlp = deep_mlp

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """See `Interaction`."""
        return _side_by_side(self.beside, self.deep_mlp, vector, pooled)

    def cost(self) -> Cost:
        """See `Interaction`; of both."""
        W, cost = self.vectors.width, self.beside.cost()
        layers = tuple(pairwise((W, *self.widths)))
        return cost._replace(
            layers=cost.layers + layers, num_kept=cost.num_kept + W + sum(self.widths)
        )

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """See `Interaction`."""
        beside = self.beside.evaluated(dtype, self.beside.width)
        layers = evaluated(linear_layers(self.deep_mlp), dtype)

        def join(vector: Tensor | None, pooled: Tensor) -> Tensor:
            deep = through(layers, cat_interaction(vector, pooled))
            return widened(torch.cat([beside(vector, pooled), deep], 1), width)

        return join

    def compilable(self) -> nn.Module:
        """See `Interaction`."""
        return _PlainDeep(self.beside.compilable(), self.deep_mlp)


class _PlainDeep(nn.Module):
    """`DeepInteraction` in torch's own operators."""

    def __init__(self, beside: nn.Module, deep_mlp: nn.Module) -> None:
        super().__init__()
        self.beside, self.deep_mlp = beside, deep_mlp

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        return _side_by_side(self.beside, self.deep_mlp, vector, pooled)


def _side_by_side(
    beside: nn.Module, deep_mlp: nn.Module, vector: Tensor | None, pooled: Tensor
) -> Tensor:
    deep = deep_mlp(cat_interaction(vector, pooled))
    return torch.cat([beside(vector, pooled), deep], 1)
