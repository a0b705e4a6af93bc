"""Choose where every table lies: starts that are simple or greedy, then local moves by the cost.

Invariants: the same arguments give the same plan; by the cost model it is never worse than dealing
tables out in turn or than one way of cutting all of them, where these fit; it fits each rank's
memory, or there is no plan.

Shapes: T tables, R rows of a table, W ranks, D embedding dim, K kinds of load.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from fastdlrm.errors import PlanError
from fastdlrm.parallel.cost import CostModel, Load
from fastdlrm.parallel.footprint import size_text
from fastdlrm.parallel.plan import (
    Sharding,
    ShardingPlan,
    TablePlan,
    column_wise,
    data_parallel,
    row_wise,
    table_wise,
)
from fastdlrm.parallel.topology import Topology
from fastdlrm.parallel.workload import Floats, Workload

MIN_COLUMNS = 8
"""Of a column_wise shard: a row of fewer is not worth its random access."""
MAX_TRIALS = 8_000
"""Placements that local moves try, of the most promising starts first: bounds their time."""
MIN_GAIN = 1e-6
"""Relative; less is no better."""


class Placement(NamedTuple):
    """Where one table lies.

    Attributes:
        sharding: How it is cut.
        ranks: Of the shards, in order; none for data_parallel.
    """

    sharding: Sharding
    ranks: tuple[int, ...] = ()


class Score(NamedTuple):
    """What is to be small, the first first.

    Attributes:
        excess_bytes: Of the fullest rank over its memory.
        cost_ns: Time.
        tie_ns: Time that decides between equals.
    """

    excess_bytes: float
    cost_ns: float
    tie_ns: float

    def beats(self, other: "Score") -> bool:
        """Whether it is smaller by more than rounding."""
        for mine, others in zip(self, other, strict=True):
            if abs(mine - others) > MIN_GAIN * max(mine, others):
                return mine < others
        return False


Placements = dict[str, Placement]
Judge = Callable[[Floats], Score]


def make_plan(workload: Workload, topology: Topology, world_size: int) -> ShardingPlan:
    """Find a fast plan that fits.

    Args:
        workload: The step; its tables are placed.
        topology: The machine; `memory_bytes` is the limit of a rank.
        world_size: W.

    Raises:
        PlanError: The machine has fewer ranks, or no plan was found that fits; then the message has
            a line a rank.
    """
    if world_size > topology.num_ranks:
        raise PlanError(
            f"plan: {world_size} ranks are asked for, topology {topology.name!r} has "
            f"{topology.num_ranks}; name a larger one (h100x{world_size}), or measure that many: "
            f"torchrun --nproc-per-node {world_size} -m fastdlrm plan ..."
        )
    search = _Search(CostModel(workload, topology, world_size))
    placements = search.best()
    held = search.model.held_bytes(search.loads(placements))
    if held.max() > topology.memory_bytes:
        raise PlanError(_misfit(workload, topology, held))
    return search.plan(placements)


def least_ranks(workload: Workload, topology: Topology, most: int) -> int | None:
    """The fewest ranks, up to `most`, whose memory holds the tables; None if these do not."""

    def fits(world_size: int) -> bool:
        search = _Search(CostModel(workload, topology, world_size))
        held = [search.model.held_bytes(search.loads(p)).max() for p in search.roomy()]
        return bool(min(held) <= topology.memory_bytes)

    if not fits(most):
        return None
    low, high = 0, most  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _misfit(workload: Workload, topology: Topology, held: Floats) -> str:
    """What is needed, rank by rank, and what to do."""
    least = least_ranks(workload, topology, topology.num_ranks)
    remedy = (
        f"no number of ranks up to {topology.num_ranks} is enough:"
        if least is None
        else f"take {least} ranks or more, or"
    )
    limit = topology.memory_bytes
    rows = [
        f"  rank {rank}: {size_text(need)}" + (" (too much)" if need > limit else "")
        for rank, need in enumerate(held)
    ]
    return (
        f"plan: {len(held)} ranks of {size_text(limit)} cannot hold the tables and what a "
        f"step needs; {remedy} lower model.embedding_dim, train.global_batch_size or the "
        "tables' rows (max_rows, min_count), or set train.table_dtype = 'bf16'. Needed at best:\n"
        + "\n".join(rows)
    )


class _Search:
    """Placements of one workload on W ranks, and their scores.

    Args:
        model: Of both.
    """

    def __init__(self, model: CostModel) -> None:
        self.model = model
        self._W = model.world_size
        self._D = model.workload.embedding_dim
        self._rows = model.workload.num_embeddings
        self._cut_loads: dict[tuple[str, Sharding, int], Floats] = {}
        self._num_trials = 0
        widths = {2**i for i in range(1, self._W.bit_length())} | {self._W}
        self._widths = sorted(widths - {1})

    def best(self) -> Placements:
        """The best of the starts and of what local moves make of them."""
        order = self._costly()
        node = min(self._W, self.model.topology.ranks_per_node)
        greedy = [self._greedy(order, self._outlook, most) for most in sorted({node, self._W})]
        greedy.append(self._greedy(order, self._even, self._W))
        starts = [*self._simple(), *self.roomy(), *greedy]
        chosen = [self._least(starts, judge) for judge in (self._score, self._outlook)]
        self._num_trials = 0
        refined = [
            self._refine(self._refine(start, self._outlook), self._score)
            for start in (*chosen, *starts)
        ]
        return self._least([chosen[0], *refined], self._score)

    def _least(self, found: list[Placements], judge: Judge) -> Placements:
        """The first of the best."""
        best = found[0]
        for other in found[1:]:
            if judge(self.loads(other)).beats(judge(self.loads(best))):
                best = other
        return best

    def roomy(self) -> list[Placements]:
        """Placements that leave the fullest rank the most room."""
        by_size = sorted(self._rows, key=lambda name: -self._rows[name])

        def fullest(loads: Floats) -> Score:
            held = self.model.held_bytes(loads)
            return Score(float(held.max()), float(held.sum()), 0.0)

        return [self._greedy(by_size, fullest, self._W), self._all("row_wise")]

    def loads(self, placements: Placements) -> Floats:
        """Sum over all tables, shape (W, K)."""
        total = np.zeros((self._W, len(Load)))
        for name, placement in placements.items():
            self._add(total, name, placement)
        return total

    def plan(self, placements: Placements) -> ShardingPlan:
        """The plan that placements stand for."""
        return ShardingPlan(
            world_size=self._W,
            embedding_dim=self._D,
            num_embeddings=dict(self._rows),
            tables={name: self._table_plan(name, placements[name]) for name in self._rows},
            table_dims=dict(self.model.workload.table_dims),
        )

    def _simple(self) -> list[Placements]:
        """Dealt out in turn, and one way of cutting all tables."""
        dealt = {name: Placement("table_wise", (i % self._W,)) for i, name in enumerate(self._rows)}
        ways: tuple[Sharding, ...] = ("row_wise", "column_wise", "data_parallel")
        return [dealt, *(self._all(way) for way in ways)]

    def _all(self, sharding: Sharding) -> Placements:
        """All tables cut one way, over as many ranks as it can."""
        placements = {}
        for name in self._rows:
            options = [p for p in self._options(name, range(self._W)) if p.sharding == sharding]
            whole = Placement("table_wise", (0,))
            placements[name] = options[-1] if options else whole
        return placements

    def _costly(self) -> list[str]:
        """Tables, the one whose lookup and update take longest first."""

        def cost(name: str) -> tuple[float, int]:
            load = self._cuts(name, "table_wise", 1)[0]
            return -float(load[Load.LOOKUP_NS] + load[Load.UPDATE_NS]), -self._rows[name]

        return sorted(self._rows, key=cost)

    def _greedy(self, order: list[str], judge: Judge, most: int) -> Placements:
        """One table after the other where those placed score best, on `most` ranks at most."""
        placements: Placements = {}
        loads = np.zeros((self._W, len(Load)))
        for name in order:
            placements[name] = self._choose(loads, name, judge, most)[1]
            self._add(loads, name, placements[name])
        return placements

    def _choose(self, loads: Floats, name: str, judge: Judge, most: int) -> tuple[Score, Placement]:
        """The best placement of a table beside `loads`, on `most` ranks at most."""
        best: tuple[Score, Placement] | None = None
        for placement in self._candidates(loads, name):
            if len(placement.ranks) > most:
                continue
            trial = loads.copy()
            self._add(trial, name, placement)
            found = judge(trial)
            if best is None or found.beats(best[0]):
                best = found, placement
        assert best is not None  # table_wise is always a candidate
        return best

    def _candidates(self, loads: Floats, name: str) -> Iterator[Placement]:
        """Placements worth trying: on the ranks least busy with tables, and on the emptiest where
        memory may run out.
        """
        busy = loads[:, Load.LOOKUP_NS] + loads[:, Load.UPDATE_NS]
        full = loads[:, Load.TABLE_BYTES] + loads[:, Load.STATE_BYTES]
        busy = busy.round(3)  # ranks that differ by rounding alone are equal, on any machine
        orders = [np.lexsort((full, busy)).tolist()]
        if 2 * full.max() > self.model.topology.memory_bytes:
            orders.append(np.lexsort((busy, full)).tolist())
        seen = set()
        for order in orders:
            for placement in self._options(name, order):
                if placement not in seen:
                    seen.add(placement)
                    yield placement

    def _options(self, name: str, order: range | list[int]) -> Iterator[Placement]:
        """Every way of cutting a table, on the first ranks of an order."""
        dim = self.model.workload.dim_of(name)
        yield Placement("table_wise", tuple(order[:1]))
        for k in self._widths:
            if k <= self._rows[name]:
                yield Placement("row_wise", tuple(order[:k]))
        for k in self._widths:
            if dim % k == 0 and dim // k >= MIN_COLUMNS:
                yield Placement("column_wise", tuple(order[:k]))
        if self._W > 1 and dim == self._D:
            yield Placement("data_parallel")

    def _refine(self, placements: Placements, judge: Judge) -> Placements:
        """Move or swap tables of the ranks that hold all others up, while it helps."""
        placements, loads = dict(placements), self.loads(placements)
        score, is_better = judge(loads), True
        while is_better and self._num_trials < MAX_TRIALS:
            is_better = False
            for changes in (self._moves, self._swaps):
                for found, change in changes(placements, loads, judge):
                    if found.beats(score):
                        score, is_better = found, True
                        for name, placement in change.items():
                            self._add(loads, name, placements[name], -1.0)
                            self._add(loads, name, placement)
                        placements |= change
                if is_better:
                    break
        return placements

    def _moves(
        self, placements: Placements, loads: Floats, judge: Judge
    ) -> Iterator[tuple[Score, Placements]]:
        """The best change of each table of a hot rank, with its score; both may change between."""
        hot, _ = self._hot_and_cold(loads)
        movable = [n for n, p in placements.items() if not p.ranks or hot & set(p.ranks)]
        for name in movable:
            if self._num_trials >= MAX_TRIALS:
                return
            without = loads.copy()
            self._add(without, name, placements[name], -1.0)
            score, placement = self._choose(without, name, judge, self._W)
            yield score, {name: placement}

    def _swaps(
        self, placements: Placements, loads: Floats, judge: Judge
    ) -> Iterator[tuple[Score, Placements]]:
        """Exchanges of a whole table of a hot rank and one of a cold rank."""
        hot, cold = self._hot_and_cold(loads)
        whole = {n: p.ranks[0] for n, p in placements.items() if p.sharding == "table_wise"}
        pairs = product(
            [n for n, rank in whole.items() if rank in hot],
            [n for n, rank in whole.items() if rank in cold - hot],
        )
        for name, other in pairs:
            if self._num_trials >= MAX_TRIALS:
                return
            change = {name: placements[other], other: placements[name]}
            trial = loads.copy()
            for changed, placement in change.items():
                self._add(trial, changed, placements[changed], -1.0)
                self._add(trial, changed, placement)
            yield judge(trial), change

    def _hot_and_cold(self, loads: Floats) -> tuple[set[int], set[int]]:
        """Ranks that are first, and last, in time, in memory held or in vectors sent."""
        kinds = (self.model.busy_ns(loads), self.model.held_bytes(loads), loads[:, Load.COLUMNS])
        return {int(k.argmax()) for k in kinds}, {int(k.argmin()) for k in kinds}

    def _even(self, loads: Floats) -> Score:
        """All the time that the loads ask for if they lie evenly and nothing hides.

        Where most tables are yet to be placed, the slowest rank does not tell which cut is cheap.
        """
        even = loads.mean(0)
        joint = self.model.joint_ns(np.broadcast_to(even, loads.shape))
        asked_ns = sum(joint.values()) + joint["vectors"] + joint["copies"]
        asked_ns += float(even[[Load.LOOKUP_NS, Load.UPDATE_NS, Load.GRADIENT_NS]].sum())
        asked_ns += float(even[Load.SORTED]) * self.model.topology.sort_ns
        excess_bytes, step_ns, _ = self._score(loads)
        return Score(excess_bytes, max(asked_ns, self.model.host_ns(loads)), step_ns)

    def _outlook(self, loads: Floats) -> Score:
        """A step and what it asks for: where many ranks tie for the slowest, moves still count."""
        excess_bytes, asked_ns, step_ns = self._even(loads)
        return Score(excess_bytes, step_ns + asked_ns, step_ns)

    def _score(self, loads: Floats) -> Score:
        """A step; then what the slowest rank and all of them are busy for."""
        self._num_trials += 1
        busy = self.model.busy_ns(loads)
        slowest = float(busy.max())
        excess = self.model.held_bytes(loads).max() - self.model.topology.memory_bytes
        return Score(
            max(float(excess), 0.0),
            max(slowest, self.model.host_ns(loads)),
            slowest + float(busy.mean()),
        )

    def _add(self, loads: Floats, name: str, placement: Placement, sign: float = 1.0) -> None:
        """Lay a table on its ranks, or take it away."""
        if placement.sharding == "data_parallel":
            loads += sign * self._cuts(name, "data_parallel", 1)
        else:
            cuts = self._cuts(name, placement.sharding, len(placement.ranks))
            loads[list(placement.ranks)] += sign * cuts

    def _cuts(self, name: str, sharding: Sharding, count: int) -> Floats:
        """Loads of a table's shards, whatever their ranks, shape (count, K)."""
        key = (name, sharding, count)
        if key not in self._cut_loads:
            placement = Placement(sharding, tuple(range(count)))
            self._cut_loads[key] = self.model.load(name, self._table_plan(name, placement))[:count]
        return self._cut_loads[key]

    def _table_plan(self, name: str, placement: Placement) -> TablePlan:
        R, D, ranks = self._rows[name], self.model.workload.dim_of(name), placement.ranks
        if placement.sharding == "data_parallel":
            return data_parallel()
        if placement.sharding == "table_wise":
            return table_wise(R, D, ranks[0])
        return (row_wise if placement.sharding == "row_wise" else column_wise)(R, D, ranks)
