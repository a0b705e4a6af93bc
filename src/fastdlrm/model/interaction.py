"""What joins the vectors of a sample into the input of the top MLP: one class an interaction.

All that depends on which interaction a model has is asked of it here: its width, its parameters,
what it computes, how it predicts, what it costs. The train step's own backward passes are in
`fastdlrm.train.join`.

Shapes: B batch, F sparse features, V vectors a sample (F, and one more with a dense vector),
D embedding dim, W = V * D.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdlrm.kernels.interaction import cat_interaction, dot_interaction, dot_interaction_width
from fastdlrm.kernels.mlp import MIN_COLUMNS, row_linear, weight_pieces
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.evaluated import evaluated, linear_layers, through
from fastdlrm.model.mlp import build_mlp, drawn_weight

Joined = Callable[[Tensor | None, Tensor], Tensor]
"""The bottom MLP's result (B, D) or None, pooled vectors (B, F, D) -> the top MLP's input."""


class Vectors(NamedTuple):
    """The vectors of a sample.

    Attributes:
        num_features: F.
        dim: D.
        has_dense: Whether there is one of the bottom MLP.
    """

    num_features: int
    dim: int
    has_dense: bool

    @property
    def num_vectors(self) -> int:
        """V."""
        return self.num_features + self.has_dense

    @property
    def width(self) -> int:
        """W."""
        return self.num_vectors * self.dim


class Cost(NamedTuple):
    """What an interaction takes, a sample, beside reading the vectors and writing the result.

    Attributes:
        layers: Inputs and outputs of each linear layer in it.
        num_products: Multiplications, each with an addition, outside its layers.
        num_moved: Numbers that these read and write.
        num_kept: Numbers kept for the backward pass.
    """

    layers: tuple[tuple[int, int], ...] = ()
    num_products: int = 0
    num_moved: int = 0
    num_kept: int = 0

    @property
    def flop(self) -> float:
        """Of the forward pass."""
        return 2.0 * (self.num_products + sum(k * n for k, n in self.layers))


class Interaction(nn.Module):
    """Joins the vectors of a sample.

    Attributes:
        vectors: What it joins.
        width: Of its result.
    """

    def __init__(self, vectors: Vectors, width: int) -> None:
        super().__init__()
        self.vectors = vectors
        self.width = width

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """Join.

        Args:
            vector: The bottom MLP's result, shape (B, D); None without dense features.
            pooled: Shape (B, F, D), of the same type; any strides.

        Returns:
            Shape (B, `width`).
        """
        raise NotImplementedError

    def cost(self) -> Cost:
        """What it takes."""
        raise NotImplementedError

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """What it computes with the weights it has now, in prediction.

        On a CPU, from `MIN_ROWS` rows on, a sample's bits depend on nothing but the sample.

        Args:
            dtype: Of products and result.
            width: The result is widened by zeros to it.
        """
        raise NotImplementedError

    def compilable(self) -> nn.Module:
        """Itself in torch's own operators, which every compiler knows."""
        return self


class DotInteraction(Interaction):
    """The dense vector, and the dot product of every two vectors.

    Source: Naumov et al. 2019, arXiv:1906.00091.
    """

    def __init__(self, vectors: Vectors, include_diagonal: bool = False) -> None:
        super().__init__(vectors, dot_interaction_width(*vectors, include_diagonal))
        self.include_diagonal = include_diagonal

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """See `Interaction`."""
        return dot_interaction(vector, pooled, self.include_diagonal)

    def cost(self) -> Cost:
        """See `Interaction`; the other vector of each product is read again going backward."""
        D = self.vectors.dim
        return Cost(num_products=(self.width - D * self.vectors.has_dense) * D)

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """See `Interaction`."""
        return lambda vector, pooled: dot_interaction(vector, pooled, self.include_diagonal, width)

    def compilable(self) -> nn.Module:
        """See `Interaction`."""
        return _PlainDot(self.vectors.num_vectors, self.include_diagonal)


class _PlainDot(nn.Module):
    """`DotInteraction` in torch's own operators."""

    pairs: Tensor

    def __init__(self, num_vectors: int, include_diagonal: bool) -> None:
        super().__init__()
        i, j = torch.tril_indices(num_vectors, num_vectors, 0 if include_diagonal else -1)
        self.register_buffer("pairs", i * num_vectors + j)

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        vectors = pooled if vector is None else torch.cat([vector.unsqueeze(1), pooled], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        pairs = products.index_select(1, self.pairs)
        return pairs if vector is None else torch.cat([vector, pairs], 1)


class CatInteraction(Interaction):
    """All vectors side by side."""

    def __init__(self, vectors: Vectors) -> None:
        super().__init__(vectors, vectors.width)

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """See `Interaction`."""
        return cat_interaction(vector, pooled)

    def cost(self) -> Cost:
        """See `Interaction`."""
        return Cost()

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """See `Interaction`."""
        return lambda vector, pooled: _widened(cat_interaction(vector, pooled), width)


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
        x = start = _widened(cat_interaction(vector, pooled), self._wide)
        for v, u, bias in self._layers:
            narrow = row_linear(x, v, None, relu=False)
            x = row_linear(narrow, u, bias, relu=False).mul_(start).add_(x)
        return x[:, : self._width]


class ProjectionInteraction(Interaction):
    """The dense vector, and the dot products of new vectors that two MLPs make of all of them.

    With P (n_1, D) the first branch's result and Q (D, n_2) the second's, emits P Q row by row.

    Source: TorchRec's DLRM_Projection, whose branches end in ReLU too.
    """

    def __init__(
        self,
        vectors: Vectors,
        branches: tuple[tuple[int, ...], tuple[int, ...]],
        generator: torch.Generator | None,
    ) -> None:
        """Draw the branches.

        Args:
            vectors: What it joins.
            branches: Widths of the layers of each; the last are n_1 * D and n_2 * D.
            generator: Of the weights, on the CPU; None: they are on no device.
        """
        D = vectors.dim
        rows, columns = (widths[-1] // D for widths in branches)
        super().__init__(vectors, vectors.has_dense * D + rows * columns)
        self.widths = branches
        self.branch1, self.branch2 = (
            build_mlp(vectors.width, widths, generator=generator) for widths in branches
        )

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """See `Interaction`."""
        x = cat_interaction(vector, pooled)
        D = self.vectors.dim
        first, second = self.branch1(x).unflatten(1, (-1, D)), self.branch2(x).unflatten(1, (D, -1))
        products = torch.bmm(first, second).flatten(1)
        return products if vector is None else torch.cat([vector, products], 1)

    def cost(self) -> Cost:
        """See `Interaction`."""
        W, D = self.vectors.width, self.vectors.dim
        layers = tuple(pair for widths in self.widths for pair in pairwise((W, *widths)))
        ends = sum(widths[-1] for widths in self.widths)
        num_products = (self.width - self.vectors.has_dense * D) * D
        return Cost(layers, num_products, W + ends, W + sum(map(sum, self.widths)))

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """See `Interaction`."""
        branches = [
            evaluated(linear_layers(branch), dtype) for branch in (self.branch1, self.branch2)
        ]
        D = self.vectors.dim
        rows, columns = (widths[-1] // D for widths in self.widths)
        device = next(self.branch1.parameters()).device
        # torch.bmm rounds a sample differently in batches of other sizes, dot_interaction does not:
        # of its pairs those of a column, numbered from `rows` on, and a row
        i, j = torch.arange(rows).unsqueeze(1), torch.arange(rows, rows + columns)
        pairs = (j * (j - 1) // 2 + i).flatten().to(device)

        def join(vector: Tensor | None, pooled: Tensor) -> Tensor:
            x = cat_interaction(vector, pooled)
            first, second = (through(branch, x) for branch in branches)
            both = torch.cat([first.unflatten(1, (rows, D)), second.unflatten(1, (D, -1)).mT], 1)
            products = dot_interaction(None, both).index_select(1, pairs)
            return _widened(products if vector is None else torch.cat([vector, products], 1), width)

        return join


def build_interaction(
    config: ModelConfig, vectors: Vectors, generator: torch.Generator | None = None
) -> Interaction:
    """The interaction that a config names.

    Args:
        config: Shape of the model.
        vectors: What is joined.
        generator: Of its weights, on the CPU; None: they are on no device and take no memory.
    """
    if config.interaction == "dot":
        return DotInteraction(vectors, config.include_diagonal)
    if config.interaction == "cat":
        return CatInteraction(vectors)
    if config.interaction == "cross":
        return CrossInteraction(vectors, config.num_cross_layers, config.cross_rank, generator)
    branches = config.projection_branch1, config.projection_branch2
    return ProjectionInteraction(vectors, branches, generator)


def _widened(x: Tensor, width: int) -> Tensor:
    """With zero columns up to a width."""
    missing = width - x.shape[1]
    return F.pad(x, (0, missing)) if missing else x
