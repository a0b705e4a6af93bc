"""One batch between the ranks: ids to the owners of their rows, pooled vectors back, gradients.

The personalised all-to-all ("butterfly shuffle") of the paper. Two ways: `StaticExchange` for
single ids and as many samples on every rank, whose sizes are known beforehand, so that a CUDA graph
can hold it; `JaggedExchange` for the rest, which must ask the other ranks for sizes.

Order: an owner gets the samples of rank 0 first, then of rank 1: the order of the global batch.

Shapes: W world size, B samples of this rank, M most samples of any rank, F features, D embedding
dim, A slots of all ranks, S slots of this one; see `fastdlrm.parallel.group`.

Source: Naumov et al. 2019, arXiv:1906.00091, section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.model.lookup import RowSource
from fastdlrm.parallel.group import ShardGroup, Slot
from fastdlrm.parallel.placement import Placement
from fastdlrm.parallel.plan import Shard
from fastdlrm.parallel.world import Pending, World


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of what a stack of tables looked up, perhaps still on its way.

    Attributes:
        values: Shape (B', F', D'): samples and features as the stack was asked for them.
        pending: To wait for before `values` are read; None where they are there.
        sent: What is read meanwhile.
    """

    values: Tensor
    pending: Pending | None = None
    sent: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Whatever must be kept until another stream has waited."""
        return [self.values] if self.sent is None else [self.values, self.sent]

    def wait(self) -> Tensor:
        """The values; on a GPU the current stream waits."""
        if self.pending is not None:
            self.pending.wait()
        return self.values


class Exchange(Protocol):
    """A batch under way; a `Lookup` once `send` was called.

    Attributes:
        arrived: What each stack is to look up: one for each group, then the replicated tables.
    """

    arrived: list[SparseBatch]

    def send(self, pooled: Sequence[Tensor]) -> None:
        """Send what the stacks looked up to the ranks that asked.

        Args:
            pooled: One for each of `arrived`, shape (B', F', D'), a view of (F', B', D').
        """
        ...

    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        ...

    def source(self) -> RowSource | None:
        """See `Lookup`."""
        ...

    def send_gradient(self, grad: Tensor) -> list[Gradient]:
        """Send gradients to the owners of the rows.

        Args:
            grad: Of the pooled vectors, shape (B, F, D), or as `source` asks for it.

        Returns:
            One for each of `arrived`.
        """
        ...


class StaticExchange:
    """Single ids, B samples on every rank; see `Exchange`."""

    def __init__(self, placement: Placement, sparse: SparseBatch) -> None:
        """Send the ids.

        Args:
            placement: Of the tables.
            sparse: Single ids without weights.
        """
        self._placement = placement
        self._num_samples = B = sparse.num_samples
        self._ids_FB = sparse.ids.view(sparse.num_features, B)
        self._rows = placement.slot_rows(self._ids_FB).flatten()
        self._buffer: Tensor | None = None
        self._by_group: list[Tensor] = []
        self._pending: list[Pending] = []
        under_way = []
        for group in placement.groups:
            sent = self._ids_FB.index_select(0, group.slot_features).flatten()
            received = sent.new_empty(group.world_size * group.counts[placement.world.rank] * B)
            pending = _all_to_all(placement.world, group, received, sent, B)
            under_way.append((group, received, sent, pending))
        self.arrived = []
        for group, received, _, pending in under_way:
            pending.wait()
            self.arrived.append(group.localise(received, B))
        replicated = self._ids_FB.index_select(0, placement.replicated_features).flatten()
        self.arrived.append(
            SparseBatch(
                ids=replicated,
                lengths=None,
                weights=None,
                num_features=len(placement.replicated_features),
            )
        )

    def send(self, pooled: Sequence[Tensor]) -> None:
        """See `Exchange`. Vectors of full width end up in one buffer, slot by slot."""
        placement, B = self._placement, self._num_samples
        *of_groups, replicated = (p.transpose(0, 1).flatten(0, 1) for p in pooled)
        full = placement.groups[0]
        num_received = len(full.slots) * B
        self._buffer = of_groups[0].new_empty(num_received + len(replicated), full.width)
        self._by_group = [self._buffer[:num_received]]
        for group in placement.groups[1:]:
            self._by_group.append(of_groups[0].new_empty(len(group.slots) * B, group.width))
        self._sent = of_groups
        self._pending = [
            _all_to_all(placement.world, group, received, sent, B, back=True)
            for group, received, sent in zip(
                placement.groups, self._by_group, of_groups, strict=True
            )
        ]
        self._buffer[num_received:] = replicated

    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`."""
        buffer, placement, B = self._received(), self._placement, self._num_samples
        whole_FBD = buffer.index_select(0, self._rows).view(-1, B, buffer.shape[1])
        if len(placement.groups) == 1:
            return whole_FBD.to(dtype).transpose(0, 1)
        new = buffer.new_zeros if placement.has_narrow else buffer.new_empty
        pooled_FBD = new(len(self._ids_FB), B, buffer.shape[1], dtype=dtype)
        pooled_FBD[placement.whole_features] = whole_FBD.to(dtype)
        for group, received in zip(placement.groups[1:], self._by_group[1:], strict=True):
            parts = received.view(len(group.slots), B, group.width)
            for slot, vectors in zip(group.slots, parts, strict=True):
                place = pooled_FBD[slot.feature, :, _columns(slot.shard)]
                if slot.is_partial:  # a slot that does not hold a sample's row gave zeros
                    place += vectors.to(dtype)
                else:
                    place.copy_(vectors)
        return pooled_FBD.transpose(0, 1)

    def source(self) -> RowSource | None:
        """See `Lookup`: on a GPU, where no table is cut into columns."""
        if len(self._placement.groups) > 1 or not self._ids_FB.is_cuda or not len(self._ids_FB):
            return None
        return RowSource(self._received(), self._rows, scatter=True)

    def send_gradient(self, grad: Tensor) -> list[Gradient]:
        """See `Exchange`."""
        placement, B = self._placement, self._num_samples
        assert self._buffer is not None
        if grad.dim() == 2:
            by_slot = grad.to(self._buffer.dtype)
        else:
            grad = grad.to(self._buffer.dtype)
            rows = self._rows.long()
            of_whole = grad.transpose(0, 1).index_select(0, placement.whole_features)
            # a slot that does not hold a sample's row gets zeros
            by_slot = torch.zeros_like(self._buffer).index_copy_(0, rows, of_whole.flatten(0, 1))
        num_sent = len(self._by_group[0])
        sent = [by_slot[:num_sent]]
        for group in placement.groups[1:]:
            parts = [self._of_slot(grad, slot) for slot in group.slots]
            sent.append(torch.cat(parts) if parts else by_slot.new_empty(0, group.width))
        gradients = [
            _send_gradient(placement.world, group, part, B)
            for group, part in zip(placement.groups, sent, strict=True)
        ]
        replicated_FBD = by_slot[num_sent:].view(-1, B, placement.groups[0].width)
        return [*gradients, Gradient(replicated_FBD.transpose(0, 1))]

    def _of_slot(self, grad: Tensor, slot: Slot) -> Tensor:
        """The gradient of what a slot gave, shape (B, d); zeros where another holds the row."""
        own = grad[:, slot.feature, _columns(slot.shard)]
        if not slot.is_partial:
            return own
        local = self._ids_FB[slot.feature] - slot.shard.first_row
        is_here = (local >= 0) & (local < slot.shard.num_rows)
        return own * is_here.unsqueeze(1)

    def _received(self) -> Tensor:
        """The buffer, once all vectors are there."""
        while self._pending:
            self._pending.pop().wait()
        self._sent = []
        assert self._buffer is not None
        return self._buffer


class JaggedExchange:
    """Bags of any size, any number of samples; see `Exchange`. Asks the other ranks for sizes."""

    def __init__(self, placement: Placement, sparse: SparseBatch, counts: Sequence[int]) -> None:
        """Send the ids.

        Args:
            placement: Of the tables.
            sparse: Any.
            counts: Samples of each rank.
        """
        self._placement = placement
        self._most = max(counts)
        self._num_samples = counts[placement.world.rank]
        self._num_features = sparse.num_features
        features = _features(sparse, self._num_samples)
        self.arrived = [self._send_ids(group, features) for group in placement.groups]
        own = [features[f] for f in placement.replicated_features.tolist()]
        self.arrived.append(_joined(own, sparse))
        self._by_group: list[Tensor] = []
        self._replicated: Tensor | None = None
        self._pending: list[Pending] = []

    def send(self, pooled: Sequence[Tensor]) -> None:
        """See `Exchange`."""
        *of_groups, replicated = pooled
        self._replicated = replicated
        self._sent = [part.transpose(0, 1).flatten(0, 1) for part in of_groups]
        world, M = self._placement.world, self._most
        for group, sent in zip(self._placement.groups, self._sent, strict=True):
            received = sent.new_empty(len(group.slots) * M, group.width)
            self._pending.append(_all_to_all(world, group, received, sent, M, back=True))
            self._by_group.append(received)

    def pooled(self, dtype: torch.dtype) -> Tensor:
        """See `Lookup`: parts of one bag are summed in the order of its table's rows."""
        while self._pending:
            self._pending.pop().wait()
        assert self._replicated is not None
        placement, B = self._placement, self._num_samples
        D = placement.groups[0].width
        pooled_FBD = self._replicated.new_zeros(self._num_features, B, D, dtype=torch.float32)
        for group, received in zip(placement.groups, self._by_group, strict=True):
            parts = received.view(len(group.slots), self._most, group.width)
            for slot, vectors in zip(group.slots, parts, strict=True):
                pooled_FBD[slot.feature, :, _columns(slot.shard)] += vectors[:B]
        if len(placement.replicated_features):
            replicated_FBD = self._replicated.transpose(0, 1).float()
            pooled_FBD[placement.replicated_features] = replicated_FBD
        return pooled_FBD.to(dtype).transpose(0, 1)

    def source(self) -> RowSource | None:
        """See `Lookup`: no vector lies in one row."""
        return None

    def send_gradient(self, grad: Tensor) -> list[Gradient]:
        """See `Exchange`."""
        placement, B, M = self._placement, self._num_samples, self._most
        assert self._replicated is not None
        grad_FBD = grad.to(self._replicated.dtype).transpose(0, 1)
        gradients = []
        for group in placement.groups:
            sent = grad_FBD.new_zeros(len(group.slots), M, group.width)
            for i, slot in enumerate(group.slots):
                sent[i, :B] = grad_FBD[slot.feature, :, _columns(slot.shard)]
            gradients.append(_send_gradient(placement.world, group, sent.flatten(0, 1), M))
        of_replicated = grad_FBD.index_select(0, placement.replicated_features)
        return [*gradients, Gradient(of_replicated.transpose(0, 1))]

    def _send_ids(self, group: ShardGroup, features: Sequence["_Feature"]) -> SparseBatch:
        """Send each slot's owner its bags, cut down to its rows; get those of the own slots."""
        world, M = self._placement.world, self._most
        parts = []
        for slot in group.slots:
            feature = features[slot.feature]
            if slot.is_partial:
                feature = feature.between(slot.shard.first_row, slot.shard.num_rows)
            parts.append(feature.padded(M))
        num_own = group.counts[world.rank]
        if not group.slots:
            return _joined([], None)
        lengths = torch.stack([part.lengths for part in parts]).flatten()
        received_lengths = lengths.new_empty(group.world_size * num_own * M)
        _all_to_all(world, group, received_lengths, lengths, M).wait()
        ends = torch.tensor([0, *group.counts]).cumsum(0).tolist()
        sent_sizes = [sum(len(part.ids) for part in parts[a:b]) for a, b in pairwise(ends)]
        by_rank = received_lengths.view(group.world_size, num_own * M)
        received_sizes = by_rank.sum(1).tolist()

        def exchange(values: Tensor) -> Tensor:
            received = values.new_empty(sum(received_sizes))
            world.all_to_all(received, values, received_sizes, sent_sizes).wait()
            return received

        ids = exchange(torch.cat([part.ids for part in parts]))
        weights = None
        if parts[0].weights is not None:
            weights = exchange(torch.cat([_given(part.weights) for part in parts]))
        if not num_own:
            return _joined([], None)
        return SparseBatch(
            ids=ids,
            lengths=received_lengths,
            weights=weights,
            num_features=group.world_size * num_own,
        )


@dataclass(frozen=True, slots=True)
class _Feature:
    """The bags of one feature: ids, lengths of shape (B,), weights of the ids or None."""

    ids: Tensor
    lengths: Tensor
    weights: Tensor | None

    def between(self, first_row: int, num_rows: int) -> "_Feature":
        """What of each bag lies in a run of rows, counted from its first."""
        local = self.ids - first_row
        is_here = (local >= 0) & (local < num_rows)
        bags = torch.arange(len(self.lengths), device=local.device)
        bag_of_id = torch.repeat_interleave(bags, self.lengths)
        lengths = torch.bincount(bag_of_id[is_here], minlength=len(bags)).to(self.lengths.dtype)
        weights = None if self.weights is None else self.weights[is_here]
        return _Feature(local[is_here], lengths, weights)

    def padded(self, num_samples: int) -> "_Feature":
        """With empty bags at the end."""
        missing = num_samples - len(self.lengths)
        return replace(self, lengths=torch.nn.functional.pad(self.lengths, (0, missing)))


def _features(sparse: SparseBatch, num_samples: int) -> list[_Feature]:
    """A batch feature by feature."""
    F, B = sparse.num_features, num_samples
    lengths = sparse.lengths
    if lengths is None:
        lengths = torch.ones_like(sparse.ids, dtype=torch.int32)
    lengths_FB = lengths.view(F, B)
    sizes = lengths_FB.sum(1).tolist()
    ids = sparse.ids.split(sizes)
    weights = [None] * F if sparse.weights is None else sparse.weights.split(sizes)
    return [_Feature(*parts) for parts in zip(ids, lengths_FB, weights, strict=True)]


def _joined(features: Sequence[_Feature], like: SparseBatch | None) -> SparseBatch:
    """Features as one batch; an empty one where there are none."""
    if not features:
        ids = torch.empty(0, dtype=torch.int32) if like is None else like.ids[:0]
        return SparseBatch(ids=ids, lengths=None, weights=None, num_features=0)
    is_weighted = features[0].weights is not None
    return SparseBatch(
        ids=torch.cat([f.ids for f in features]),
        lengths=torch.cat([f.lengths for f in features]),
        weights=torch.cat([_given(f.weights) for f in features]) if is_weighted else None,
        num_features=len(features),
    )


def _given(weights: Tensor | None) -> Tensor:
    assert weights is not None
    return weights


def _all_to_all(
    world: World, group: ShardGroup, received: Tensor, sent: Tensor, unit: int, back: bool = False
) -> Pending:
    """Exchange `unit` entries a slot: to the slots' owners, or back from them."""
    own = [group.counts[world.rank] * unit] * group.world_size
    of_ranks = [count * unit for count in group.counts]
    sizes = (of_ranks, own) if back else (own, of_ranks)
    return world.all_to_all(received, sent.contiguous(), *sizes)


def _send_gradient(world: World, group: ShardGroup, sent: Tensor, unit: int) -> Gradient:
    num_bags = group.world_size * group.counts[world.rank]
    received = sent.new_empty(num_bags * unit, group.width)
    sent = sent.contiguous()
    pending = _all_to_all(world, group, received, sent, unit)
    return Gradient(received.view(num_bags, unit, group.width).transpose(0, 1), pending, sent)


def _columns(shard: Shard) -> slice:
    """Columns of its table that a shard holds."""
    return slice(shard.first_column, shard.first_column + shard.num_columns)
