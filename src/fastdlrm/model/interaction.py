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
from fastdlrm.model.evaluated import evaluated, linear_layers, through
from fastdlrm.model.mlp import build_mlp

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
        is_logit: Whether the first number of its result is a logit, to which the output layer adds
            the rest: the weight of it begins at 1.
    """

    is_logit: bool = False

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
            dtype: Of products and result; a logit is float32.
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
        return lambda vector, pooled: widened(cat_interaction(vector, pooled), width)


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
            return widened(products if vector is None else torch.cat([vector, products], 1), width)

        return join


def widened(x: Tensor, width: int) -> Tensor:
    """With zero columns up to a width."""
    missing = width - x.shape[1]
    return F.pad(x, (0, missing)) if missing else x
