"""What a sharded step costs each rank: bytes held, bytes moved, seconds.

A placement of a table is a `Load` of each rank; loads add up, and `CostModel` turns their sums into
bytes and seconds. The formulas are in docs/scaling.md, which names what is measured and assumed.

Shapes: W ranks, G global batch, B = G / W, F sparse features, R rows of a table, D embedding dim,
c columns of a shard, e bytes of a number exchanged, K kinds of load.
"""

from enum import IntEnum
from typing import TypeVar

import numpy as np

from fastdlrm.parallel import footprint
from fastdlrm.parallel.plan import TablePlan
from fastdlrm.parallel.replicated import Replicated
from fastdlrm.parallel.topology import Topology
from fastdlrm.parallel.workload import Feature, Floats, Traffic, Workload

FloatsT = TypeVar("FloatsT", float, Floats)


class Load(IntEnum):
    """What a table's placement lays on a rank, a step; columns of a (W, K) array."""

    TABLE_BYTES = 0
    STATE_BYTES = 1
    NUMBERS = 2
    """Ids and lengths of bags that the owner of a shard gets, of all G samples."""
    SORTED = 3
    """Ids sorted by row."""
    PART_BYTES = 4
    """Held by the sort and by sums of gradients."""
    COLUMNS = 5
    """Of a sample's pooled vectors."""
    LOOKUPS = 6
    """Rows read."""
    MOVED_BYTES = 7
    """In the rank's memory."""
    LOOKUP_NS = 8
    """Reading and pooling."""
    UPDATE_NS = 9
    """Reading gradients, reading and writing rows and their state."""
    SHARED_NUMBERS = 10
    """Summed among the owners of columns, that rowwise_adagrad keeps one number a row."""
    GRADIENT_BYTES = 11
    """Dense gradients of data_parallel tables."""
    GRADIENT_NS = 12
    """Making these, and updating every row."""


class CostModel:
    """Costs of a workload on W ranks of a machine.

    Attributes:
        workload: What a step does.
        topology: Where.
        world_size: W.
        local_batch_size: B.
        replicated: Costs that placements do not alter.
    """

    def __init__(self, workload: Workload, topology: Topology, world_size: int) -> None:
        self.workload = workload
        self.topology = topology
        self.world_size = world_size
        self.local_batch_size = -(-workload.global_batch_size // world_size)
        self._features: dict[str, list[Feature]] = {name: [] for name in workload.num_embeddings}
        for feature in workload.features:
            self._features[feature.table].append(feature)
        self._traffic = {
            name: Traffic(self._features[name], rows, workload.global_batch_size)
            for name, rows in workload.num_embeddings.items()
        }
        ranks = np.arange(world_size)
        self._node = ranks // topology.ranks_per_node
        self._node_size = np.bincount(self._node)[self._node]
        self.is_one_node = bool(self._node[-1] == 0)
        self.replicated = Replicated.of(workload, topology, self.local_batch_size)

    def load(self, table: str, plan: TablePlan) -> Floats:
        """What a placement lays on each rank, shape (W, K)."""
        loads = np.zeros((self.world_size, len(Load)))
        if plan.sharding == "data_parallel":
            loads[:] = self._copy_load(table)
        else:
            loads[[shard.rank for shard in plan.shards]] = self._shard_loads(table, plan)
        return loads

    def _shard_loads(self, table: str, plan: TablePlan) -> Floats:
        """What each shard lays on its rank, shape (number of shards, K)."""
        workload, copy_gb_s = self.workload, self.topology.copy_gb_s
        features, G, e = self._features[table], workload.global_batch_size, workload.exchange_bytes
        first, num_rows, c = np.array(
            [(shard.first_row, shard.num_rows, shard.num_columns) for shard in plan.shards], float
        ).T
        ids, seen = self._traffic[table].between(first, first + num_rows)
        row_bytes, state_bytes = self._row_bytes(c)
        pooled_bytes, gradient_bytes = G * len(features) * c * e, ids * c * e
        sorted_ids = sum(G * feature.ids_per_sample for feature in features)
        is_rowwise = workload.sparse_optimizer == "rowwise_adagrad"
        is_shared = is_rowwise and plan.sharding == "column_wise" and len(plan.shards) > 1
        loads = np.zeros((len(plan.shards), len(Load)))
        loads[:, Load.TABLE_BYTES] = num_rows * row_bytes
        loads[:, Load.STATE_BYTES] = num_rows * state_bytes
        loads[:, Load.NUMBERS] = sorted_ids + G * sum(feature.is_bag for feature in features)
        loads[:, Load.SORTED] = sorted_ids
        loads[:, Load.PART_BYTES] = self._order_bytes(sorted_ids, c)
        loads[:, Load.COLUMNS] = c * len(features)
        loads[:, Load.LOOKUPS] = ids
        loads[:, Load.MOVED_BYTES] = (
            ids * row_bytes + pooled_bytes + gradient_bytes + 2 * seen * (row_bytes + state_bytes)
        )
        loads[:, Load.LOOKUP_NS] = self._rows_ns(ids, row_bytes) + pooled_bytes / copy_gb_s
        loads[:, Load.UPDATE_NS] = gradient_bytes / copy_gb_s + self._rows_ns(
            2 * seen, row_bytes + state_bytes
        )
        loads[:, Load.SHARED_NUMBERS] = sorted_ids if is_shared else 0.0
        return loads

    def step_ns(self, loads: Floats) -> Floats:
        """Time of a step by rank, shape (W,), from `parts_ns`; the formula is in docs/scaling.md.

        Args:
            loads: Sum over all tables, shape (W, K).
        """
        fixed, parts = self.replicated, self.parts_ns(loads)
        vectors, shared, rest = parts["vectors"], parts["shared"], parts["rest"]
        lookup, update, dense = parts["lookup"], parts["update"], parts["data parallel"]
        vectors_forward = np.maximum(parts["ids"] + vectors, fixed.bottom_forward_ns)
        forward = np.maximum(
            lookup + vectors_forward + fixed.top_forward_ns, parts["ids"] + parts["sort"]
        )
        ends_ns = (
            vectors + shared + update,  # the tables' chain
            fixed.bottom_backward_ns + rest + dense,  # the MLPs' chain
            vectors + shared + parts["top"] + rest,  # the network
            fixed.bottom_backward_ns + update + dense,  # the device
        )
        step: Floats = forward + fixed.top_backward_ns + np.max(ends_ns, 0)
        return step + fixed.update_ns + self.topology.step_us * 1e3

    def parts_ns(self, loads: Floats) -> dict[str, Floats]:
        """Time of what placements alter and of what ranks say to each other, each of shape (W,).

        Returns:
            ids, vectors (pooled, and their gradients as long again), shared (among the owners of
            columns), top and rest (gradients all-reduced), lookup, sort, update, data parallel.
        """
        fixed, e, W = self.replicated, self.workload.exchange_bytes, self.world_size
        dense_bytes = loads[:, Load.GRADIENT_BYTES].max()
        collectives = {
            "ids": self._exchange_ns(4 * loads[:, Load.NUMBERS] / W),
            "vectors": self._exchange_ns(e * self.local_batch_size * loads[:, Load.COLUMNS]),
            "shared": self._reduce_ns(4 * loads[:, Load.SHARED_NUMBERS].max()),
            "top": self._reduce_ns(fixed.top_gradient_bytes),
            "rest": self._reduce_ns(fixed.bottom_gradient_bytes + dense_bytes),
        }
        return {name: np.full(W, part) for name, part in collectives.items()} | {
            "lookup": loads[:, Load.LOOKUP_NS],
            "sort": loads[:, Load.SORTED] * self.topology.sort_ns,
            "update": loads[:, Load.UPDATE_NS],
            "data parallel": loads[:, Load.GRADIENT_NS],
        }

    def buffer_bytes(self, loads: Floats) -> Floats:
        """Held to talk to other ranks, shape (W,): ids, pooled vectors and their gradients."""
        if self.world_size == 1:
            return np.zeros(1)
        e, W = self.workload.exchange_bytes, self.world_size
        numbers, columns = loads[:, Load.NUMBERS], loads[:, Load.COLUMNS]
        of_ids = 4 * (numbers + numbers.sum() / W)
        own = self.workload.global_batch_size * columns
        return of_ids + 2 * e * (own + self.local_batch_size * columns.sum())

    def held_bytes(self, loads: Floats) -> Floats:
        """All that each rank holds, shape (W,)."""
        kinds = (Load.TABLE_BYTES, Load.STATE_BYTES, Load.PART_BYTES, Load.GRADIENT_BYTES)
        placed: Floats = loads[:, kinds].sum(1)
        return placed + self.buffer_bytes(loads) + self.replicated.held_bytes

    def sent_bytes(self, loads: Floats) -> Floats:
        """What each rank sends to others in a step, shape (W,)."""
        W, B, e = self.world_size, self.local_batch_size, self.workload.exchange_bytes
        numbers, columns = loads[:, Load.NUMBERS], loads[:, Load.COLUMNS]
        of_ids = 4 * (numbers.sum() - numbers) / W
        vectors = e * B * ((W - 1) * columns + columns.sum() - columns)
        fixed = self.replicated
        reduced = fixed.bottom_gradient_bytes + fixed.top_gradient_bytes
        shared = reduced + loads[:, Load.GRADIENT_BYTES] + 4 * loads[:, Load.SHARED_NUMBERS]
        result: Floats = of_ids + vectors + 2 * (W - 1) / W * shared
        return result

    def _copy_load(self, table: str) -> Floats:
        """What a data_parallel table lays on every rank."""
        workload, B, D = self.workload, self.local_batch_size, self.workload.embedding_dim
        R, features = workload.num_embeddings[table], self._features[table]
        e = workload.exchange_bytes
        ids = sum(B * f.ids_per_sample for f in features)
        row_bytes, state_bytes = self._row_bytes(D)
        pooled_bytes = B * len(features) * D * e
        # gradients of bags; the gradient zeroed, added to and read; rows and state read and written
        updated = ids * D * e + R * (3 * 4 * D + 2 * (row_bytes + state_bytes))
        load = np.zeros(len(Load))
        load[Load.TABLE_BYTES] = R * row_bytes
        load[Load.STATE_BYTES] = R * state_bytes
        load[Load.SORTED] = ids
        load[Load.PART_BYTES] = self._order_bytes(ids, D)
        load[Load.LOOKUPS] = ids
        load[Load.MOVED_BYTES] = ids * row_bytes + pooled_bytes + updated
        copy_gb_s = self.topology.copy_gb_s
        load[Load.LOOKUP_NS] = self._rows_ns(ids, row_bytes) + pooled_bytes / copy_gb_s
        load[Load.GRADIENT_BYTES] = 4 * R * D
        load[Load.GRADIENT_NS] = updated / copy_gb_s
        return load

    def _row_bytes(self, num_columns: FloatsT) -> tuple[FloatsT, FloatsT]:
        """A row of so many columns, and what the optimizer keeps for it."""
        workload = self.workload
        width, (per_row, per_column) = (
            footprint.TABLE_BYTES[workload.table_dtype],
            footprint.state_bytes(workload.sparse_optimizer),
        )
        return num_columns * width, per_row + per_column * num_columns

    def _order_bytes(self, num_ids: float, num_columns: FloatsT) -> FloatsT:
        per_id, per_column = footprint.order_bytes(is_gpu=self.topology.device == "cuda")
        return num_ids * (per_id + per_column * num_columns)

    def _rows_ns(self, num_rows: FloatsT, row_bytes: FloatsT) -> FloatsT:
        """Rows at random places, read or written once; bytes over GB/s are ns."""
        return num_rows * (self.topology.row_ns + row_bytes / self.topology.gather_gb_s)

    def _exchange_ns(self, per_peer: Floats) -> float:
        """An all-to-all in which rank r sends per_peer[r] bytes to, or takes them from, each other.

        Links carry both directions at once; those within a node and between nodes work beside each
        other; all wait for the last.
        """
        total = float(per_peer.sum())
        if self.world_size == 1 or total == 0.0:
            return 0.0
        topology, size = self.topology, self._node_size
        of_node = np.bincount(self._node, per_peer)[self._node]
        near = np.maximum(per_peer * (size - 1), of_node - per_peer).max() / topology.exchange_gb_s
        if self.is_one_node:
            return float(near) + topology.latency_us * 1e3
        far = np.maximum(per_peer * (self.world_size - size), total - of_node).max()
        return float(max(near, far / topology.node_gb_s)) + topology.node_latency_us * 1e3

    def _reduce_ns(self, num_bytes: float) -> float:
        """An all-reduce: each rank sends 2 (W - 1) / W of the bytes; nodes use all their links."""
        W, topology = self.world_size, self.topology
        if W == 1 or num_bytes == 0.0:
            return 0.0
        speed, latency_us = topology.reduce_gb_s, topology.latency_us
        if not self.is_one_node:
            speed = min(speed, topology.node_gb_s * topology.ranks_per_node)
            latency_us = topology.node_latency_us
        return 2 * (W - 1) / W * num_bytes / speed + latency_us * 1e3
