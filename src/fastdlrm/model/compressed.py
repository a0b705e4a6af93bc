"""Compressed tables within a model: a batch of ids, lowered to ids of the tables in memory.

A feature of a compressed table is looked up as several *parts*, each of which is a feature of the
tables in memory; whatever looks up, trains or shards these knows nothing of it. Vectors are joined
in float32.

Shapes: B samples, F sparse features, P parts of all features, C columns of bags in the lowered
batch, D embedding dim, L ids of a feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdlrm.batch import SparseBatch
from fastdlrm.kernels.lookup import bag_sizes, pooled_lookup, segment_of
from fastdlrm.model.composition import Composition
from fastdlrm.model.config import Init, Pooling
from fastdlrm.model.embedding import Draw
from fastdlrm.model.lookup import Tables

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bags:
    """Bags of a feature whose ids are looked up one by one, as their vectors are no sums.

    Attributes:
        offsets: Where each bag begins, and the end, shape (B + 1,), int64.
        weights: One an id, shape (L,), float32; None for all ones.
        pooling: How the vectors of a bag become one.
        num_ids: L.
    """

    offsets: Tensor
    weights: Tensor | None
    pooling: Pooling
    num_ids: int

    def pool(self, vectors: Tensor) -> Tensor:
        """Pooled vectors, shape (B, D), of those of the ids, shape (C, D)."""
        rows = torch.arange(self.num_ids, device=vectors.device)
        return pooled_lookup(
            vectors[: self.num_ids], rows, self.offsets, self.weights, self.pooling
        )

    def spread(self, grad: Tensor) -> Tensor:
        """Gradients of the ids' vectors, shape (L, D), of those of the bags, shape (B, D)."""
        if self.pooling == "mean":
            grad = grad / bag_sizes(self.offsets)
        grad = grad.index_select(0, segment_of(self.offsets, self.num_ids))
        return grad if self.weights is None else grad * self.weights.unsqueeze(1)


class Lowered(NamedTuple):
    """A batch as the tables in memory are asked for it.

    Attributes:
        sparse: P features of C samples. C is B, or more where a feature's ids are looked up one by
            one: then each is a bag of its own, and other features have empty bags at the end.
        bags: By feature, what its ids' vectors are still to be pooled to; None where `sparse` has
            its bags as they are.
        num_samples: B.
    """

    sparse: SparseBatch
    bags: list[Bags | None]
    num_samples: int


class Compression:
    """What F features are looked up as, and what becomes of the vectors."""

    def __init__(self, features: Sequence[Composition], pooling: Sequence[Pooling]) -> None:
        """Take the features.

        Args:
            features: The table of each.
            pooling: How the vectors of each one's bags become one.
        """
        self._features = list(features)
        self._pooling = list(pooling)
        edges = accumulate((len(feature.parts) for feature in features), initial=0)
        self._spans = [slice(*edge) for edge in pairwise(edges)]

    def lower(self, sparse: SparseBatch) -> Lowered:
        """Turn a batch's ids into ids of the tables in memory.

        Args:
            sparse: F features of B samples. Bags cost a wait for the device: their sizes must be
                known.
        """
        F, B = len(self._features), sparse.num_samples
        if sparse.lengths is None and sparse.weights is None:
            by_feature = zip(self._features, sparse.ids.view(F, B), strict=True)
            ids = torch.cat([part for feature, ids in by_feature for part in feature.ids(ids)])
            num_parts = self._spans[-1].stop
            lowered = SparseBatch(ids=ids, lengths=None, weights=None, num_features=num_parts)
            return Lowered(lowered, [None] * F, B)
        return self._lower_bags(sparse)

    def _lower_bags(self, sparse: SparseBatch) -> Lowered:
        F, B = len(self._features), sparse.num_samples
        lengths = sparse.lengths
        if lengths is None:
            lengths = torch.ones_like(sparse.ids, dtype=torch.int32)
        lengths_FB = lengths.view(F, B)
        sizes = lengths_FB.sum(1).tolist()
        ids = sparse.ids.split(sizes)
        weights = None if sparse.weights is None else list(sparse.weights.split(sizes))
        bags: list[Bags | None] = [None] * F
        of_parts = list(lengths_FB)
        for f, feature in enumerate(self._features):
            if not feature.join.is_linear:
                offsets = functional.pad(lengths_FB[f].cumsum(0, dtype=torch.int64), (1, 0))
                of_ids = None if weights is None else weights[f]
                bags[f] = Bags(offsets, of_ids, self._pooling[f], sizes[f])
                of_parts[f] = lengths.new_ones(sizes[f])
                if weights is not None:
                    weights[f] = torch.ones_like(weights[f])
        C = max(len(part) for part in of_parts)
        padded = [functional.pad(part, (0, C - len(part))) for part in of_parts]
        lowered = SparseBatch(
            ids=torch.cat(
                [part for f, feature in enumerate(self._features) for part in feature.ids(ids[f])]
            ),
            lengths=torch.cat(self.of_parts(padded)),
            weights=None if weights is None else torch.cat(self.of_parts(weights)),
            num_features=self._spans[-1].stop,
        )
        return Lowered(lowered, bags, B)

    def of_parts(self, of_features: Sequence[T]) -> list[T]:
        """What is said of each of the F features, once for each of its parts."""
        pairs = zip(of_features, self._features, strict=True)
        return [each for each, feature in pairs for _ in feature.parts]

    def combine(self, vectors: Tensor, lowered: Lowered) -> Tensor:
        """Join the vectors of a lowered batch.

        Args:
            vectors: Shape (C, P, D), float32, a view of (P, C, D).
            lowered: What was looked up.

        Returns:
            Shape (B, F, D), a view of (F, B, D).
        """
        vectors_PCD = vectors.transpose(0, 1)
        joined = []
        for feature, span, bags in zip(self._features, self._spans, lowered.bags, strict=True):
            one = feature.join(vectors_PCD[span].unbind(0))
            joined.append(one[: lowered.num_samples] if bags is None else bags.pool(one))
        return torch.stack(joined).transpose(0, 1)

    def backward(self, grad: Tensor, vectors: Tensor, lowered: Lowered) -> Tensor:
        """The gradient of a lowered batch's vectors.

        Args:
            grad: Of what `combine` returned, shape (B, F, D).
            vectors: What `combine` was given.
            lowered: As well.

        Returns:
            Shape (C, P, D), a view of (P, C, D), float32.
        """
        vectors_PCD = vectors.transpose(0, 1)
        parts: list[Tensor] = []
        by_feature = grad.float().transpose(0, 1)
        C = vectors_PCD.shape[1]
        for f, (feature, span) in enumerate(zip(self._features, self._spans, strict=True)):
            bags = lowered.bags[f]
            of_feature = by_feature[f] if bags is None else bags.spread(by_feature[f])
            if len(of_feature) < C:
                of_feature = functional.pad(of_feature, (0, 0, 0, C - len(of_feature)))
            parts += feature.join.backward(of_feature, vectors_PCD[span].unbind(0))
        return torch.stack(parts).transpose(0, 1)


class CompressedTables(nn.Module):
    """Tables in memory, looked up by the ids of the tables that they stand for.

    Attributes:
        tables: In memory.
        compression: What lies between.
    """

    tables: Tables

    def __init__(self, tables: Tables, compression: Compression) -> None:
        """Wrap tables.

        Args:
            tables: In memory, with a feature for each part.
            compression: What the model's features are looked up as.
        """
        super().__init__()
        self.tables = tables
        self.compression = compression

    @property
    def num_embeddings(self) -> Mapping[str, int]:
        """Rows by table in memory, in order."""
        return self.tables.num_embeddings

    def forward(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        """Look up and pool a batch.

        Args:
            sparse: F features of B samples.
            dtype: Of the result; None: float32.

        Returns:
            Shape (B, F, D), a view of (F, B, D).
        """
        lowered = self.compression.lower(sparse)
        vectors = self.tables(lowered.sparse, torch.float32)
        return self.compression.combine(vectors, lowered).to(dtype or torch.float32)

    def initialise(
        self,
        init: Init,
        generator: torch.Generator,
        std: float = 0.01,
        draws: Mapping[str, Draw] | None = None,
    ) -> None:
        """Draw all numbers, table by table in memory."""
        self.tables.initialise(init, generator, std, draws)

    def state_tensors(self) -> dict[str, Any]:
        """By table in memory, the live numbers that this process holds."""
        return self.tables.state_tensors()

    def pooling_weights(self) -> dict[str, Any]:
        """By table in memory, the learned pooling weights that this process holds."""
        return self.tables.pooling_weights()
