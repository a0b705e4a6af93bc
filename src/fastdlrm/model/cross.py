"""Cross networks, which join the vectors of a sample: with matrices of low rank, and with vectors.

Shapes: B batch, V vectors a sample, D embedding dim, W = V * D.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdlrm.kernels.cross_vector import cross_vector, scales_of
from fastdlrm.kernels.interaction import cat_interaction
from fastdlrm.kernels.mlp import MIN_COLUMNS, row_linear, weight_pieces
from fastdlrm.model.interaction import Cost, Interaction, Joined, Vectors, widened
from fastdlrm.model.mlp import drawn_weight


class CrossLayer(nn.Module):
    """A layer of a cross network: y = U V x + b.

    Attributes:
        v: Shape (rank, W).
        u: Shape (W, rank).
        bias: Shape (W,).
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.v = drawn_weight(width, rank, generator)
        self.u = drawn_weight(rank, width, generator)
        self.bias = nn.Parameter(torch.zeros(width, device=self.u.device))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, W) -> (B, W)."""
        return F.linear(F.linear(x, self.v), self.u, self.bias)


class CrossInteraction(Interaction):
    """A cross network on all vectors side by side, its matrices of low rank.

    x_{l+1} = x_0 * (U_l V_l x_l + b_l) + x_l, element by element. As in TorchRec U and V begin with
    Xavier's normal distribution, b with zeros.

    Source: Wang et al. 2020 (DCN-v2), arXiv:2008.13535, equation 2; MLPerf's DLRM-DCNv2.
    """

    def __init__(
        self, vectors: Vectors, num_layers: int, rank: int, generator: torch.Generator | None
    ) -> None:
        super().__init__(vectors, vectors.width)
        self.rank = rank
        self.layers = nn.ModuleList(
            CrossLayer(self.width, rank, generator) for _ in range(num_layers)
        )

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """See `Interaction`."""
        x = start = cat_interaction(vector, pooled)
        for layer in self.layers:
            x = start * layer(x) + x
        return x

    def cost(self) -> Cost:
        """See `Interaction`; kept are each layer's input, its narrow product and its wide one."""
        n, W, rank = len(self.layers), self.width, self.rank
        return Cost(((W, rank), (rank, W)) * n, n * W, 4 * n * W, n * (2 * W + rank))

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """See `Interaction`."""
        return _EvaluatedCross(self, dtype, width)


class _EvaluatedCross:
    """`CrossInteraction` in prediction; rounded after each multiplication and addition."""

    def __init__(self, source: CrossInteraction, dtype: torch.dtype, width: int) -> None:
        self._width = width
        # on a CPU no product has fewer columns than keep their bits
        self._wide, rank = max(width, MIN_COLUMNS), max(source.rank, MIN_COLUMNS)
        self._layers = []
        for layer in source.layers:
            v, u, bias = (x.detach().to(dtype) for x in layer.parameters())
            more, less = self._wide - source.width, rank - source.rank
            self._layers.append(
                (
                    weight_pieces(F.pad(v, (0, more, 0, less))),
                    weight_pieces(F.pad(u, (0, less, 0, more))),
                    F.pad(bias, (0, more)),
                )
            )

    def __call__(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        x = start = widened(cat_interaction(vector, pooled), self._wide)
        for v, u, bias in self._layers:
            narrow = row_linear(x, v, None, relu=False)
            x = row_linear(narrow, u, bias, relu=False).mul_(start).add_(x)
        return x[:, : self._width]


class CrossVectorInteraction(Interaction):
    """A cross network on all vectors side by side, with a vector a layer.

    x_{l+1} = x_0 (x_l . w_l) + b_l + x_l. w begins with Xavier's normal distribution, b with zeros.

    Attributes:
        weight: w_l, shape (n, W).
        bias: b_l, shape (n, W).

    Source: Wang et al. 2017 (DCN), arXiv:1708.05123, equation 3.
    """

    def __init__(
        self, vectors: Vectors, num_layers: int, generator: torch.Generator | None
    ) -> None:
        super().__init__(vectors, vectors.width)
        drawn = [drawn_weight(self.width, 1, generator).detach() for _ in range(num_layers)]
        self.weight = nn.Parameter(torch.cat(drawn))
        self.bias = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """See `Interaction`."""
        return cross_vector(cat_interaction(vector, pooled), self.weight, self.bias)

    def cost(self) -> Cost:
        """See `Interaction`; kept is x_0, read and written is it and the result."""
        n, W = self.weight.shape
        return Cost(((W, n),), W + n, 2 * W, W)

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """See `Interaction`."""
        weight, bias = (x.detach().to(dtype) for x in (self.weight, self.bias))
        n = len(weight)
        pieces = weight_pieces(F.pad(weight, (0, 0, 0, max(MIN_COLUMNS - n, 0))))

        def join(vector: Tensor | None, pooled: Tensor) -> Tensor:
            x = cat_interaction(vector, pooled)
            products = row_linear(x, pieces, None, relu=False)[:, :n]
            alpha, beta, _ = scales_of(products, weight, bias)
            return widened((alpha[-1].unsqueeze(1) * x).add_(beta[-1]).to(dtype), width)

        return join
