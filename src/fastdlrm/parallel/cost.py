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
    """Sent to the other owners of columns, as rowwise_adagrad takes the mean over a whole row."""
    GRADIENT_BYTES = 11
    """Dense gradients of data_parallel tables."""
    GRADIENT_NS = 12
    """Making these, and updating every row."""
    CUT = 13
    """Shards of fewer than D columns: these travel apart, and their vectors are put together."""


class CostModel:
    """Costs of a workload on W ranks of a machine.

    Attributes:
        workload: What a step does.
        topology: Where.
        world_size: W.
        local_batch_size: B.
        has_bags: Whether any feature's ids vary in number.
        replicated: Costs that placements do not alter.
    """

    def __init__(self, workload: Workload, topology: Topology, world_size: int) -> None:
        self.workload = workload
        self.topology = topology
        self.world_size = world_size
        self.local_batch_size = -(-workload.global_batch_size // world_size)
        self.has_bags = any(feature.is_bag for feature in workload.features)
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
        num_owners, is_cut = len(plan.shards), bool((c < workload.embedding_dim).any())
        # bags are cut down to an owner's rows before they are sent, single ids are not
        is_sifted = plan.sharding == "row_wise" and self.has_bags
        asked = sum(G * feature.ids_per_sample for feature in features)
        sent = ids if is_sifted else np.full_like(ids, asked)
        num_shared = (workload.sparse_optimizer == "rowwise_adagrad") + workload.learns_weights
        loads = np.zeros((len(plan.shards), len(Load)))
        loads[:, Load.TABLE_BYTES] = num_rows * row_bytes
        loads[:, Load.STATE_BYTES] = num_rows * state_bytes
        loads[:, Load.NUMBERS] = sent + G * len(features) * self.has_bags
        loads[:, Load.SORTED] = sent
        loads[:, Load.PART_BYTES] = self._order_bytes(sent, c)
        loads[:, Load.COLUMNS] = c * len(features)
        loads[:, Load.LOOKUPS] = ids
        loads[:, Load.MOVED_BYTES] = (
            ids * row_bytes + pooled_bytes + gradient_bytes + 2 * seen * (row_bytes + state_bytes)
        )
        loads[:, Load.LOOKUP_NS] = self._rows_ns(ids, row_bytes) + pooled_bytes / copy_gb_s
        loads[:, Load.UPDATE_NS] = gradient_bytes / copy_gb_s + self._rows_ns(
            2 * seen, row_bytes + state_bytes
        )
        is_shared = plan.sharding == "column_wise"
        loads[:, Load.SHARED_NUMBERS] = seen * (num_owners - 1) * is_shared * num_shared
        loads[:, Load.CUT] = is_cut
        return loads

    def step_ns(self, loads: Floats) -> Floats:
        """Time of a step by rank, shape (W,): the longer of `busy_ns` and `host_ns`.

        Args:
            loads: Sum over all tables, shape (W, K).
        """
        return np.maximum(self.busy_ns(loads), self.host_ns(loads))

    def host_ns(self, loads: Floats) -> float:
        """Least time of a step that no graph can hold, as a size in it depends on the ids; or 0."""
        has_copies = bool(loads[:, Load.GRADIENT_BYTES].any())
        asks_for_rows = self.workload.sparse_optimizer == "adam" and has_copies
        sums_rows = self.workload.learns_weights or loads[:, Load.SHARED_NUMBERS].any()
        is_open = self.has_bags or asks_for_rows or sums_rows
        return self.topology.eager_us * 1e3 if is_open else 0.0

    def busy_ns(self, loads: Floats) -> Floats:
        """Time that a rank's device and links take, shape (W,); the formula of docs/scaling.md."""
        fixed, joint = self.replicated, self.joint_ns(loads)
        vectors, shared, rest = joint["vectors"], joint["shared"], joint["rest"]
        update, dense = loads[:, Load.UPDATE_NS], loads[:, Load.GRADIENT_NS]
        if (
            self.topology.device == "cpu"
        ):  # a rank's cores carry what it sends, and nothing overlaps
            talk = joint["ids"] + 2 * vectors + shared + joint["top"] + rest + 2 * joint["copies"]
            sort = loads[:, Load.SORTED] * self.topology.sort_ns
            work = loads[:, Load.LOOKUP_NS] + sort + update + dense
            alone: Floats = work + (talk + fixed.all_ns + self.topology.step_us * 1e3)
            return alone
        before_join = max(joint["ids"] + vectors, fixed.bottom_forward_ns)
        chain = loads[:, Load.LOOKUP_NS] + before_join + joint["copies"] + fixed.top_forward_ns
        sort = loads[:, Load.SORTED] * self.topology.sort_ns
        forward = np.maximum(chain, joint["ids"] + sort)
        of_tables = vectors + shared + update
        of_mlps = fixed.bottom_backward_ns + rest + dense
        network = vectors + shared + joint["top"] + rest
        device = fixed.bottom_backward_ns + update + dense
        tail = np.maximum(np.maximum(of_tables, of_mlps), np.maximum(device, network))
        alike = fixed.top_backward_ns + joint["copies"] + fixed.update_ns
        alike += 1e3 * self.topology.step_us
        alike += 1e3 * self.topology.copies_us * bool(loads[:, Load.GRADIENT_BYTES].any())
        step: Floats = forward + tail + alike
        return step

    def joint_ns(self, loads: Floats) -> dict[str, float]:
        """Time of what all ranks do together, as long for each.

        Returns:
            ids, vectors (pooled, and their gradients as long again), shared (among the owners of
            columns), top and rest (gradients all-reduced), copies (of vectors into place, and of
            gradients as long again).
        """
        fixed, e, W = self.replicated, self.workload.exchange_bytes, self.world_size
        B, has_cut = self.local_batch_size, bool(loads[:, Load.CUT].any())
        of_cut = self._latency_ns if has_cut and W > 1 else 0.0
        is_fused = self.topology.device == "cuda" and not self.has_bags and not has_cut
        numbers = 0 if W == 1 or is_fused else B * len(self.workload.features)
        dense_bytes = float(loads[:, Load.GRADIENT_BYTES].max())
        return {
            "ids": self._exchange_ns(4 * loads[:, Load.NUMBERS] / W) + of_cut,
            "vectors": self._exchange_ns(e * B * loads[:, Load.COLUMNS]) + of_cut,
            # each owner sends every other the same numbers
            "shared": self._exchange_ns(4 * loads[:, Load.SHARED_NUMBERS] / max(W - 1, 1)),
            "top": self._reduce_ns(fixed.top_gradient_bytes),
            "rest": self._reduce_ns(fixed.bottom_gradient_bytes + dense_bytes),
            "copies": 2 * numbers * self.workload.embedding_dim * e / self.topology.copy_gb_s,
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
        of_mlps = fixed.bottom_gradient_bytes + fixed.top_gradient_bytes
        reduced = of_mlps + loads[:, Load.GRADIENT_BYTES]
        shared = 4 * loads[:, Load.SHARED_NUMBERS]
        result: Floats = of_ids + vectors + shared + 2 * (W - 1) / W * reduced
        return result

    def _copy_load(self, table: str) -> Floats:
        """What a data_parallel table lays on every rank."""
        workload, B, D = self.workload, self.local_batch_size, self.workload.dim_of(table)
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
        row, state = num_columns * width, per_row + per_column * num_columns
        if workload.learns_weights:
            row, state = row + footprint.WEIGHT_BYTES, state + per_row + per_column
        return row, state

    def _order_bytes(self, num_ids: FloatsT, num_columns: FloatsT) -> FloatsT:
        per_id, per_column = footprint.order_bytes(is_gpu=self.topology.device == "cuda")
        return num_ids * (per_id + per_column * num_columns)

    def _rows_ns(self, num_rows: FloatsT, row_bytes: FloatsT) -> FloatsT:
        """Rows at random places, read or written once; bytes over GB/s are ns."""
        return num_rows * (self.topology.row_ns + row_bytes / self.topology.gather_gb_s)

    @property
    def _latency_ns(self) -> float:
        """Of one collective."""
        topology = self.topology
        return 1e3 * (topology.latency_us if self.is_one_node else topology.node_latency_us)

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
            return float(near) + self._latency_ns
        far = np.maximum(per_peer * (self.world_size - size), total - of_node).max()
        return float(max(near, far / topology.node_gb_s)) + self._latency_ns

    def _reduce_ns(self, num_bytes: float) -> float:
        """An all-reduce: each rank sends 2 (W - 1) / W of the bytes; nodes use all their links."""
        W, topology = self.world_size, self.topology
        if W == 1 or num_bytes == 0.0:
            return 0.0
        speed = topology.reduce_gb_s
        if not self.is_one_node:
            speed = min(speed, topology.node_gb_s * topology.ranks_per_node)
        return 2 * (W - 1) / W * num_bytes / speed + self._latency_ns
