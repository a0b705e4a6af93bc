"""Narrow tables' vectors made D numbers long by a matrix a table: mixed dimension embeddings.

Source: Ginart et al. 2019, arXiv:1909.11810.

Shapes: B batch, F sparse features, D embedding dim, d columns of a table.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdlrm.contracts.schema import Schema
from fastdlrm.kernels.mlp import MIN_COLUMNS, row_linear, weight_pieces
from fastdlrm.model.config import ModelConfig

Product = Callable[[Tensor, int], Tensor]
"""Vectors (B, d), number of a matrix -> vectors (B, D)."""


class Projected(NamedTuple):
    """A feature whose vectors are projected.

    Attributes:
        feature: Its place in the batch.
        matrix: Number of its table's matrix.
        dim: d.
    """

    feature: int
    matrix: int
    dim: int


class TableProjection(nn.Module):
    """One matrix for each narrow table, in the model's order of tables, without a bias.

    Attributes:
        features: Those of narrow tables, ascending.
        weights: The matrices, shape (D, d) each.
    """

    def __init__(
        self, features: Sequence[Projected], embedding_dim: int, generator: torch.Generator | None
    ) -> None:
        """Draw the matrices: U(+-sqrt(6 / (d + D))), Xavier's.

        Args:
            features: Those of narrow tables; their matrices are numbered without a gap.
            embedding_dim: D.
            generator: On the CPU; None: nothing is drawn, the numbers are on no device.
        """
        super().__init__()
        self.features = list(features)
        dims = {one.matrix: one.dim for one in features}
        self.weights = nn.ParameterList()
        for matrix in sorted(dims):
            device = "meta" if generator is None else "cpu"
            weight = nn.Parameter(torch.empty(embedding_dim, dims[matrix], device=device))
            self.weights.append(nn.init.xavier_uniform_(weight, generator=generator))

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(weight.numel() for weight in self.weights)

    @property
    def num_products(self) -> int:
        """Multiplications a sample, each with an addition."""
        return sum(self.weights[one.matrix].numel() for one in self.features)

    def forward(self, pooled: Tensor) -> Tensor:
        """Project; vectors of tables that are D wide stay as they are.

        Args:
            pooled: Shape (B, F, D), of narrow tables zero from d on.

        Returns:
            Shape (B, F, D), a view of (F, B, D).
        """
        return self.apply_by(pooled, lambda x, matrix: x @ self.weights[matrix].t())

    def apply_by(self, pooled: Tensor, product: Product) -> Tensor:
        """`forward` by other products."""
        vectors = list(pooled.unbind(1))
        for feature, matrix, dim in self.features:
            vectors[feature] = product(vectors[feature][:, :dim], matrix)
        return torch.stack(vectors).transpose(0, 1)

    def evaluated(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """What it computes with the weights it has now, in prediction.

        On a CPU, from `MIN_ROWS` rows on, a sample's bits depend on nothing but the sample.

        Args:
            dtype: Of products and result.
        """
        pieces = []
        for weight in self.weights:
            more = max(MIN_COLUMNS - len(weight), 0) if not weight.is_cuda else 0
            pieces.append(weight_pieces(F.pad(weight.detach().to(dtype), (0, 0, 0, more))))

        def project(pooled: Tensor) -> Tensor:
            D = pooled.shape[2]
            return self.apply_by(
                pooled, lambda x, k: row_linear(x.contiguous(), pieces[k], None, relu=False)[:, :D]
            )

        return project


def build_projection(
    config: ModelConfig, schema: Schema, generator: torch.Generator | None
) -> TableProjection | None:
    """What makes narrow tables' vectors D long; None where they are left as they are.

    Args:
        config: Shape of the model; it fits the schema.
        schema: Its features.
        generator: On the CPU; None: nothing is drawn.
    """
    if not config.table_projection:
        return None
    D, dims = config.embedding_dim, config.table_dims
    used = {feature.table for feature in schema.sparse}
    narrow = [t.name for t in schema.tables if t.name in used and dims.get(t.name, D) < D]
    number = {table: k for k, table in enumerate(narrow)}
    features = [
        Projected(f, number[feature.table], dims[feature.table])
        for f, feature in enumerate(schema.sparse)
        if feature.table in number
    ]
    return TableProjection(features, D, generator) if features else None
