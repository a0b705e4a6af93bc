"""FLOPs and bytes of a forward pass or a train step, by operator class, from the shapes alone.

A multiplication and an addition are two FLOPs. Bytes are what must move if nothing but the operands
of one operator stays in a cache: each input read once, each output written once, a row of a table
at each visit.

Shapes: B batch, N dense features, F sparse features, V vectors a sample, D embedding dim, L ids in
the batch, U different rows among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator class does in one step."""

    flop: float
    num_bytes: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte; 0 where nothing is moved."""
        return self.flop / self.num_bytes if self.num_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """All that FLOPs and bytes depend on.

    Attributes:
        bottom: Widths of the bottom MLP, N first; empty without dense features.
        top: Widths of the top MLP, the interaction's result first, 1 last.
        num_sparse: F.
        dim: D.
        joint_layers: Inputs and outputs of each linear layer within the interaction.
        num_products: Multiplications, each with an addition, of the interaction outside its layers;
            0 where it only joins vectors.
        num_joint_moved: Numbers a sample that the interaction reads and writes beside the vectors
            and its result.
        element_bytes: Of activations and of the MLPs' weights.
        row_element_bytes: Of a number of a table.
    """

    bottom: tuple[int, ...]
    top: tuple[int, ...]
    num_sparse: int
    dim: int
    num_products: int
    joint_layers: tuple[tuple[int, int], ...] = ()
    num_joint_moved: int = 0
    element_bytes: int = 4
    row_element_bytes: int = 4


def forward_work(shape: ModelShape, batch_size: int, num_ids: float) -> dict[str, Work]:
    """A forward pass.

    Args:
        shape: Of the model.
        batch_size: B.
        num_ids: L.

    Returns:
        By operator class: fc, embedding_bag and interaction.
    """
    B, D, size = batch_size, shape.dim, shape.element_bytes
    layers = _layers(shape)
    vectors = shape.num_sparse + bool(shape.bottom)
    row_bytes = D * shape.row_element_bytes
    # of tables alone, vectors that are only joined lie side by side already
    is_joined = shape.num_products > 0 or bool(shape.bottom)
    numbers = vectors * D + shape.top[0] + shape.num_joint_moved
    moved = size * B * numbers if is_joined else 0
    return {
        "fc": Work(
            sum(2.0 * B * k * n for k, n in layers),
            size * sum(B * k + k * n + n + B * n for k, n in layers),
        ),
        "embedding_bag": Work(
            num_ids * D,
            num_ids * (row_bytes + ID_BYTES) + B * shape.num_sparse * D * size,
        ),
        "interaction": Work(2.0 * B * shape.num_products, moved),
    }


def training_work(
    shape: ModelShape, batch_size: int, num_ids: float, num_rows: float
) -> dict[str, Work]:
    """A train step: forward, backward and the update of the tables by plain SGD; what the dense
    optimizer does is left out, the bottom MLP's input takes no gradient.

    Args:
        shape: Of the model.
        batch_size: B.
        num_ids: L.
        num_rows: U, each read and written by the update.

    Returns:
        As `forward_work`.
    """
    B, D, size = batch_size, shape.dim, shape.element_bytes
    before = forward_work(shape, batch_size, num_ids)
    flop, num_bytes = before["fc"].flop, before["fc"].num_bytes
    for place, (k, n) in enumerate(_layers(shape)):
        flop += 2.0 * B * k * n  # of the weights
        num_bytes += size * (B * k + B * n + k * n + n)
        if place or not shape.bottom:
            flop += 2.0 * B * k * n  # of the input
            num_bytes += size * (B * n + k * n + B * k)
    bags, row_bytes = before["embedding_bag"], D * shape.row_element_bytes
    joined = before["interaction"]
    vectors = shape.num_sparse + bool(shape.bottom)
    reads = vectors * D if shape.num_products else 0  # the other factor of each product
    return {
        "fc": Work(flop, num_bytes),
        "embedding_bag": Work(
            bags.flop + num_ids * D + 2.0 * num_rows * D,
            bags.num_bytes
            + B * shape.num_sparse * D * size
            + num_ids * ID_BYTES
            + 2.0 * num_rows * row_bytes,
        ),
        "interaction": Work(
            3.0 * joined.flop,
            2 * joined.num_bytes + size * B * reads,
        ),
    }


def num_pairs(num_vectors: int, include_diagonal: bool = False) -> int:
    """P: pairs of V vectors."""
    return num_vectors * (num_vectors + (1 if include_diagonal else -1)) // 2


def _layers(shape: ModelShape) -> Sequence[tuple[int, int]]:
    """Inputs and outputs of each linear layer, in data-flow order."""
    return [*pairwise(shape.bottom), *shape.joint_layers, *pairwise(shape.top)]
