"""A factorization machine, which joins the vectors of a sample into one logit.

Shapes: B batch, V vectors a sample, D embedding dim, W = V * D.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdlrm.kernels.factorization import factorization
from fastdlrm.kernels.interaction import cat_interaction
from fastdlrm.kernels.mlp import MIN_COLUMNS, row_linear, weight_pieces
from fastdlrm.model.interaction import Cost, Interaction, Joined, Vectors, widened


class FactorizationInteraction(Interaction):
    """The sum of every vector's first number, and of the dot products of every two of the others.

    The first number of a row is the weight of its id, the D - 1 others are its factors; with D = 1
    there are only weights, which is logistic regression. The bottom MLP's result is a vector as any
    other: of a linear layer alone it is linear in the dense features, each with a weight and
    factors. Pairs of two dense features are left out, and of two ids of a bag: pairs are of fields.

    Source: Rendle 2010, Factorization Machines; by fields as in Guo et al. 2017 (DeepFM),
    arXiv:1703.04247.
    """

    is_logit = True

    def __init__(self, vectors: Vectors) -> None:
        super().__init__(vectors, 1)

    def forward(self, vector: Tensor | None, pooled: Tensor) -> Tensor:
        """See `Interaction`."""
        return factorization(vector, pooled)

    def cost(self) -> Cost:
        """See `Interaction`; squares of all numbers, and of their sums."""
        return Cost(num_products=self.vectors.width + self.vectors.dim)

    def evaluated(self, dtype: torch.dtype, width: int) -> Joined:
        """See `Interaction`; in float32 whatever the type, since it is a logit."""
        D = self.vectors.dim
        columns = max(D, MIN_COLUMNS)
        # on a CPU torch.sum rounds a sample differently in batches of other sizes, products do not
        eye = F.pad(torch.eye(D), (0, 0, 0, columns - D))
        of_vectors = weight_pieces(eye.repeat(1, self.vectors.num_vectors))
        of_numbers = weight_pieces(torch.ones(MIN_COLUMNS, columns))

        def join(vector: Tensor | None, pooled: Tensor) -> Tensor:
            if pooled.is_cuda:
                return widened(factorization(vector, pooled), width)
            x = cat_interaction(vector, pooled).float()
            total = row_linear(x, of_vectors, None, relu=False)
            squares = row_linear(x.square(), of_vectors, None, relu=False)
            terms = total.square().sub_(squares).mul_(0.5)
            terms[:, 0] = total[:, 0]
            return widened(row_linear(terms, of_numbers, None, relu=False)[:, :1], width)

        return join
