"""What the loader hands to the model: dense features, sparse ids and labels of B samples.

Shapes: B samples, N dense features, F sparse features, L ids in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ALIGNMENT_BYTES = 256
"""Where the parts of a buffer may start; what the widest loads of a GPU ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseBatch:
    """Ids and lengths a feature, feature-major: all bags of feature 0, then all of feature 1, ...

    Attributes:
        ids: Rows of each feature's own table, shape (L,), int32 or int64.
        lengths: Ids in each bag, shape (F * B,), int32; None when every bag holds exactly one id,
            and L is F * B.
        weights: One weight an id, shape (L,), float32; None for all ones.
        num_features: F.
    """

    ids: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    num_features: int

    @property
    def num_samples(self) -> int:
        """B."""
        if self.num_features == 0:
            return 0
        bags = self.ids if self.lengths is None else self.lengths
        return bags.shape[0] // self.num_features

    def offsets(self) -> Tensor:
        """Where each bag begins in `ids`, and the end: shape (F * B + 1,), int64."""
        if self.lengths is None:
            return torch.arange(self.ids.shape[0] + 1, device=self.ids.device)
        zero = self.lengths.new_zeros(1, dtype=torch.int64)
        return torch.cat([zero, torch.cumsum(self.lengths, 0, dtype=torch.int64)])

    def slice(self, start: int, stop: int) -> "SparseBatch":
        """Samples start .. stop - 1, as a batch of their own."""
        F, B = self.num_features, self.num_samples
        if F == 0:
            return self
        if self.lengths is None:
            ids = self.ids.view(F, B)[:, start:stop].reshape(-1)
            weights = (
                None if self.weights is None else self.weights.view(F, B)[:, start:stop].reshape(-1)
            )
            return replace(self, ids=ids, weights=weights)
        offsets = self.offsets()
        spans = [slice(int(offsets[f * B + start]), int(offsets[f * B + stop])) for f in range(F)]
        return SparseBatch(
            ids=torch.cat([self.ids[s] for s in spans]),
            lengths=self.lengths.view(F, B)[:, start:stop].reshape(-1),
            weights=None if self.weights is None else torch.cat([self.weights[s] for s in spans]),
            num_features=F,
        )

    def of_features(self, features: Tensor) -> "SparseBatch":
        """Some features, as a batch of their own.

        Args:
            features: Which, in the order wanted, at least one: shape (F',), int64, where ids lie.
        """
        F, B = self.num_features, self.num_samples

        def of_bags(values: Tensor) -> Tensor:
            return values.view(F, B).index_select(0, features).flatten()

        def of_ids(values: Tensor) -> Tensor:
            if self.lengths is None:
                return of_bags(values)
            parts = _by_feature(self, values)
            return torch.cat([parts[f] for f in features.tolist()])

        return SparseBatch(
            ids=of_ids(self.ids),
            lengths=None if self.lengths is None else of_bags(self.lengths),
            weights=None if self.weights is None else of_ids(self.weights),
            num_features=len(features),
        )

    @staticmethod
    def concat(parts: Sequence["SparseBatch"]) -> "SparseBatch":
        """All samples of several batches, in order; F must be the same."""
        F = parts[0].num_features
        if len(parts) == 1 or F == 0:
            return parts[0]
        if all(p.lengths is None for p in parts):
            split = [p.ids.view(F, -1) for p in parts]
            ids = torch.cat(split, 1).reshape(-1)
            lengths = None
        else:
            pieces = [_by_feature(p, p.ids) for p in parts]
            ids = torch.cat([piece[f] for f in range(F) for piece in pieces])
            lengths = torch.cat([_lengths(p).view(F, -1) for p in parts], 1).reshape(-1)
        weights = None
        if any(p.weights is not None for p in parts):
            pieces = [_by_feature(p, _weights(p)) for p in parts]
            weights = torch.cat([piece[f] for f in range(F) for piece in pieces])
        return SparseBatch(ids=ids, lengths=lengths, weights=weights, num_features=F)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SparseBatch":
        """The same batch on another device."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=non_blocking)

        ids = self.ids.to(device, non_blocking=non_blocking)
        return replace(self, ids=ids, lengths=move(self.lengths), weights=move(self.weights))

    def pin(self) -> "SparseBatch":
        """The same batch in page-locked memory, so that copies to a GPU run asynchronously."""

        def pin(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.pin_memory()

        return replace(
            self, ids=self.ids.pin_memory(), lengths=pin(self.lengths), weights=pin(self.weights)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B samples.

    Attributes:
        dense: Shape (B, N), float32; N may be 0.
        sparse: F features; F may be 0.
        labels: Shape (B,), float32, each 0 or 1.
        buffer: Of a batch made by `allocate`, shape (n,), uint8: the one allocation that holds ids,
            dense and labels; None where each has its own. Writing to it is writing to them.
    """

    dense: Tensor
    sparse: SparseBatch
    labels: Tensor
    buffer: Tensor | None = None

    @staticmethod
    def allocate(
        num_samples: int,
        num_dense: int,
        num_sparse: int,
        *,
        device: torch.device | str = "cpu",
        pin: bool = False,
    ) -> "Batch":
        """An uninitialised batch of single ids in one buffer, so that one copy moves all of it.

        The buffer holds ids (F, B) int32, dense (B, N) float32 and labels (B,) float32, in this
        order, each starting at a multiple of `ALIGNMENT_BYTES`. The layout depends on (B, N, F)
        alone: the buffers of two batches of one shape can be copied onto each other.

        Args:
            num_samples: B.
            num_dense: N.
            num_sparse: F.
            device: Where it lies.
            pin: Whether it is page-locked, for asynchronous copies to a GPU.
        """
        counts = (num_sparse * num_samples, num_samples * num_dense, num_samples)
        num_bytes = sum(_padded_bytes(count) for count in counts)
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device, pin_memory=pin)
        return _over(buffer, num_samples, num_dense, num_sparse)

    @property
    def num_samples(self) -> int:
        """B."""
        return self.dense.shape[0]

    def slice(self, start: int, stop: int) -> "Batch":
        """Samples start .. stop - 1, as a batch of their own, without a buffer."""
        return Batch(
            dense=self.dense[start:stop],
            sparse=self.sparse.slice(start, stop),
            labels=self.labels[start:stop],
        )

    @staticmethod
    def concat(parts: Sequence["Batch"]) -> "Batch":
        """All samples of several batches, in order, without a buffer."""
        return Batch(
            dense=torch.cat([p.dense for p in parts]),
            sparse=SparseBatch.concat([p.sparse for p in parts]),
            labels=torch.cat([p.labels for p in parts]),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device; one copy where there is a buffer."""
        if self.buffer is not None:
            return self._over(self.buffer.to(device, non_blocking=non_blocking))
        return Batch(
            dense=self.dense.to(device, non_blocking=non_blocking),
            sparse=self.sparse.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def empty_like(self, device: torch.device | str) -> "Batch":
        """Uninitialised memory for a batch of the same shape, in one buffer where this is."""

        def empty(x: Tensor) -> Tensor:
            return torch.empty_like(x, device=device)

        if self.buffer is not None:
            return self._over(empty(self.buffer))
        lengths, weights = (
            None if x is None else empty(x) for x in (self.sparse.lengths, self.sparse.weights)
        )
        return Batch(
            dense=empty(self.dense),
            sparse=replace(
                self.sparse, ids=empty(self.sparse.ids), lengths=lengths, weights=weights
            ),
            labels=empty(self.labels),
        )

    def pin(self) -> "Batch":
        """The same batch in page-locked memory."""
        if self.buffer is not None:
            return self._over(self.buffer.pin_memory())
        return Batch(
            dense=self.dense.pin_memory(),
            sparse=self.sparse.pin(),
            labels=self.labels.pin_memory(),
        )

    def _over(self, buffer: Tensor) -> "Batch":
        """A batch of this shape whose content is another buffer's."""
        return _over(buffer, self.num_samples, self.dense.shape[1], self.sparse.num_features)


def _over(buffer: Tensor, B: int, N: int, F: int) -> Batch:
    """Views of a buffer, laid out as `Batch.allocate` says."""

    def view(start: int, count: int, dtype: torch.dtype) -> Tensor:
        return buffer[start : start + 4 * count].view(dtype)

    dense_start = _padded_bytes(F * B)
    labels_start = dense_start + _padded_bytes(B * N)
    ids = view(0, F * B, torch.int32)
    return Batch(
        dense=view(dense_start, B * N, torch.float32).view(B, N),
        sparse=SparseBatch(ids=ids, lengths=None, weights=None, num_features=F),
        labels=view(labels_start, B, torch.float32),
        buffer=buffer,
    )


def _padded_bytes(count: int) -> int:
    """Bytes of `count` int32 or float32, rounded up to a start of the next part."""
    return -(-4 * count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _lengths(batch: SparseBatch) -> Tensor:
    if batch.lengths is not None:
        return batch.lengths
    return torch.ones_like(batch.ids, dtype=torch.int32)


def _weights(batch: SparseBatch) -> Tensor:
    if batch.weights is not None:
        return batch.weights
    return torch.ones_like(batch.ids, dtype=torch.float32)


def _by_feature(batch: SparseBatch, values: Tensor) -> list[Tensor]:
    """Values of L ids, cut into one tensor a feature."""
    per_feature = _lengths(batch).view(batch.num_features, -1).sum(1)
    return list(torch.split(values, per_feature.tolist()))
