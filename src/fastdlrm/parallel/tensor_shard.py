"""A tensor of this rank as a piece of a larger one, which no rank need hold whole.

Shapes: R rows of a table, D embedding dim.
"""

from dataclasses import dataclass

from torch import Tensor

from fastdlrm.parallel.plan import Shard


@dataclass(frozen=True, slots=True)
class TensorShard:
    """A live piece of a larger tensor; writing into it changes what it was made of.

    The pieces of all ranks together cover the larger tensor. Ranks may hold the same piece, equal
    in every number; other pieces do not overlap.

    Attributes:
        tensor: The piece, on any device, strided or not; it may be empty.
        full_shape: Shape of the whole.
        offsets: Where the piece starts in it, one number a dimension.
    """

    tensor: Tensor
    full_shape: tuple[int, ...]
    offsets: tuple[int, ...]


def table_shard(
    tensor: Tensor, shard: Shard, num_embeddings: int, embedding_dim: int
) -> TensorShard:
    """A rank's part of a table, or of what an optimizer keeps a number or a row of it.

    Args:
        tensor: Shape (num_rows, num_columns) of the shard, or (num_rows,).
        shard: Where it lies.
        num_embeddings: R.
        embedding_dim: D.
    """
    n = tensor.dim()
    full_shape, offsets = (num_embeddings, embedding_dim), (shard.first_row, shard.first_column)
    return TensorShard(tensor, full_shape[:n], offsets[:n])
