"""Embedding tables of several widths: a stack a width, and vectors of one length for all features.

Invariant: the vector of a table of d columns is zero from column d on; such a table takes memory
for d columns.

Shapes: B batch, F sparse features, D embedding dim, d columns of a table.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastdlrm.batch import SparseBatch
from fastdlrm.model.config import Init
from fastdlrm.model.embedding import Draw, StackedTables

StackT = TypeVar("StackT", bound=StackedTables)


class WidthGroup(NamedTuple):
    """The tables of one width.

    Attributes:
        width: d.
        num_embeddings: Rows by table.
        features: Those that are looked up in them, ascending.
        feature_tables: The table of each of these.
    """

    width: int
    num_embeddings: dict[str, int]
    features: list[int]
    feature_tables: list[str]


def width_groups(
    num_embeddings: Mapping[str, int],
    feature_tables: Sequence[str],
    dims: Mapping[str, int],
    embedding_dim: int,
) -> list[WidthGroup]:
    """Sort tables by width, the widest first; those of one width keep their order.

    Args:
        num_embeddings: Rows by table.
        feature_tables: The table of each sparse feature, in the batch's order.
        dims: d of each table, at most D.
        embedding_dim: D.

    Returns:
        At least one group: an empty one of width D where there are no tables.
    """
    groups = []
    for width in sorted(set(dims.values()) or {embedding_dim}, reverse=True):
        sizes = {table: rows for table, rows in num_embeddings.items() if dims[table] == width}
        features = [f for f, table in enumerate(feature_tables) if table in sizes]
        groups.append(WidthGroup(width, sizes, features, [feature_tables[f] for f in features]))
    return groups


def joined_stacks(
    num_embeddings: Mapping[str, int],
    embedding_dim: int,
    groups: Sequence[WidthGroup],
    stacks: Sequence[StackT],
) -> "StackT | MixedTables[StackT]":
    """All tables: the stack itself where all are D wide.

    Args:
        num_embeddings: Rows by table, in the model's order.
        embedding_dim: D.
        groups: As `width_groups` gives them.
        stacks: One a group.
    """
    if [group.width for group in groups] == [embedding_dim]:
        return stacks[0]
    return MixedTables(num_embeddings, embedding_dim, stacks, [group.features for group in groups])


class MixedTables(nn.Module, Generic[StackT]):
    """Tables of several widths, in the place of one stack in a model.

    Attributes:
        num_embeddings: Rows by table, in the model's order.
        embedding_dim: D.
        stacks: One a width, the widest first.
    """

    def __init__(
        self,
        num_embeddings: Mapping[str, int],
        embedding_dim: int,
        stacks: Sequence[StackT],
        features: Sequence[Sequence[int]],
    ) -> None:
        """Join stacks; each holds tables of its own.

        Args:
            num_embeddings: Rows by table, in the model's order.
            embedding_dim: D; no stack is wider.
            stacks: At least one.
            features: Of each stack those that are looked up in it; together all F.
        """
        super().__init__()
        self.num_embeddings = dict(num_embeddings)
        self.embedding_dim = embedding_dim
        self.stacks: list[StackT] = nn.ModuleList(stacks)  # type: ignore[assignment]
        self._num_features = sum(map(len, features))
        for i, (stack, chosen) in enumerate(zip(stacks, features, strict=True)):
            index = torch.tensor(chosen, dtype=torch.int64, device=stack.feature_starts.device)
            self.register_buffer(f"_features_{i}", index, persistent=False)

    def parts(self) -> list[tuple[StackT, Tensor]]:
        """Each stack and its features, shape (F',), int64."""
        return [(stack, self.get_buffer(f"_features_{i}")) for i, stack in enumerate(self.stacks)]

    def stack_of(self, table: str) -> StackT:
        """The stack that holds a table."""
        return next(stack for stack in self.stacks if table in stack.num_embeddings)

    def initialise(
        self,
        init: Init,
        generator: torch.Generator,
        std: float = 0.01,
        draws: Mapping[str, Draw] | None = None,
    ) -> None:
        """As `StackedTables.initialise`, in the model's order of tables."""
        draws = draws or {}
        for name, rows in self.num_embeddings.items():
            how = draws.get(name, Draw(rows))
            self.stack_of(name).draw(name, how, init, generator, std)

    def state_tensors(self) -> dict[str, Tensor]:
        """Each table's rows by name, as they are stored, live."""
        return {name: self.stack_of(name).table(name) for name in self.num_embeddings}

    def pooling_weights(self) -> dict[str, Tensor]:
        """The learned pooling weights of each table by name, live; none where none are learned."""
        found = {n: weights for s in self.stacks for n, weights in s.pooling_weights().items()}
        return {name: found[name] for name in self.num_embeddings if name in found}

    def forward(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        """Look up and pool a batch.

        Args:
            sparse: F features of B samples.
            dtype: Of the result; None: the tables', float32 for tables in few bits.

        Returns:
            Shape (B, F, D), a view of (F, B, D).
        """
        parts = [
            stack(sparse.of_features(features), dtype) if len(features) else None
            for stack, features in self.parts()
        ]
        return self.widened(parts, sparse.num_samples, dtype)

    def widened(
        self, parts: Sequence[Tensor | None], num_samples: int, dtype: torch.dtype | None
    ) -> Tensor:
        """What the stacks looked up, as vectors of D numbers.

        Args:
            parts: Of each stack, shape (B, F', d); None where it has no features.
            num_samples: B.
            dtype: Of the result; None: theirs.

        Returns:
            Shape (B, F, D), a view of (F, B, D).
        """
        like = next((part for part in parts if part is not None), self.stacks[0].weight)
        shape = self._num_features, num_samples, self.embedding_dim
        pooled_FBD = like.new_zeros(shape, dtype=dtype)
        for (stack, features), part in zip(self.parts(), parts, strict=True):
            if part is not None:
                columns = pooled_FBD[:, :, : stack.embedding_dim]
                columns.index_copy_(0, features, part.transpose(0, 1))
        return pooled_FBD.transpose(0, 1)

    def narrowed(self, grad: Tensor) -> list[Tensor]:
        """The gradient of `widened`'s result, cut into those of its parts.

        Args:
            grad: Shape (B, F, D).

        Returns:
            Of each stack, shape (B, F', d), a view of (F', B, d).
        """
        grad_FBD = grad.transpose(0, 1)
        return [
            grad_FBD[:, :, : stack.embedding_dim].index_select(0, features).transpose(0, 1)
            for stack, features in self.parts()
        ]
