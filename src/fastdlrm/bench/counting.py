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
from typing import NamedTuple

ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator class does in one step."""

    flop: float
    num_bytes: float
    gathered_bytes: float = 0.0
    """Of `num_bytes`, rows of tables at places that ids name, and those ids."""

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

    @property
    def row_bytes(self) -> int:
        """Of a row of a table."""
        return self.dim * self.row_element_bytes


class Product(NamedTuple):
    """A product of matrices (M, K) and (K, N) that a linear layer asks for.

    Attributes:
        kind: "forward", "weight gradient" or "input gradient".
        m: Rows of the result.
        k: Numbers that each number of the result sums over.
        n: Columns of the result.
    """

    kind: str
    m: int
    k: int
    n: int

    @property
    def flop(self) -> float:
        """2 M K N."""
        return 2.0 * self.m * self.k * self.n

    @property
    def num_numbers(self) -> int:
        """Read and written, the bias or its gradient with them."""
        bias = {"forward": self.n, "weight gradient": self.m, "input gradient": 0}
        return self.m * self.k + self.k * self.n + self.m * self.n + bias[self.kind]


def forward_products(shape: ModelShape, batch_size: int) -> list[Product]:
    """Of a forward pass, one a layer."""
    return [Product("forward", batch_size, k, n) for k, n in _layers(shape)]


def training_products(shape: ModelShape, batch_size: int) -> list[Product]:
    """Of a train step; the bottom MLP's input takes no gradient."""
    found = forward_products(shape, batch_size)
    for place, (k, n) in enumerate(_layers(shape)):
        found.append(Product("weight gradient", n, batch_size, k))
        if place or not shape.bottom:
            found.append(Product("input gradient", batch_size, n, k))
    return found


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
    vectors = shape.num_sparse + bool(shape.bottom)
    gathered = num_ids * (shape.row_bytes + ID_BYTES)
    # of tables alone, vectors that are only joined lie side by side already
    is_joined = shape.num_products > 0 or bool(shape.bottom)
    numbers = vectors * D + shape.top[0] + shape.num_joint_moved
    moved = size * B * numbers if is_joined else 0
    return {
        "fc": _fc_work(forward_products(shape, B), size),
        "embedding_bag": Work(
            num_ids * D,
            gathered + B * shape.num_sparse * D * size,
            gathered,
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
    bags, updated = before["embedding_bag"], 2.0 * num_rows * shape.row_bytes
    joined = before["interaction"]
    vectors = shape.num_sparse + bool(shape.bottom)
    reads = vectors * D if shape.num_products else 0  # the other factor of each product
    return {
        "fc": _fc_work(training_products(shape, B), size),
        "embedding_bag": Work(
            bags.flop + num_ids * D + 2.0 * num_rows * D,
            bags.num_bytes + B * shape.num_sparse * D * size + num_ids * ID_BYTES + updated,
            bags.gathered_bytes + updated,
        ),
        "interaction": Work(
            3.0 * joined.flop,
            2 * joined.num_bytes + size * B * reads,
        ),
    }


def _fc_work(products: Sequence[Product], element_bytes: int) -> Work:
    """Of linear layers."""
    numbers = sum(product.num_numbers for product in products)
    return Work(sum(product.flop for product in products), element_bytes * numbers)


def _layers(shape: ModelShape) -> Sequence[tuple[int, int]]:
    """Inputs and outputs of each linear layer, in data-flow order."""
    return [*pairwise(shape.bottom), *shape.joint_layers, *pairwise(shape.top)]
