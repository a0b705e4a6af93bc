"""What a plan will cost, rank by rank, and how a run compares with it.

Shapes: W ranks, G global batch.
"""

import msgspec
import numpy as np

from fastdlrm.parallel.cost import CostModel, Load
from fastdlrm.parallel.footprint import size_text
from fastdlrm.parallel.plan import ShardingPlan
from fastdlrm.parallel.topology import Topology
from fastdlrm.parallel.workload import Floats, Workload


class RankCost(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's share of a step."""

    rank: int
    num_shards: int
    """Tables it holds a part of, data_parallel ones left out."""
    table_bytes: int
    """Of the tables' weights."""
    state_bytes: int
    """Of the tables' optimizer."""
    dense_bytes: int
    """Of the MLPs, their gradients and optimizer, and of gradients of data_parallel tables."""
    activation_bytes: int
    """Of activations, of batches on their way, and of the order of ids."""
    buffer_bytes: int
    """Of what it sends to other ranks and gets from them."""
    total_bytes: int
    lookups: int
    """Rows it reads a step."""
    moved_bytes: int
    """Read or written in its memory a step."""
    sent_bytes: int
    """To other ranks a step."""
    step_s: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a step will take."""

    topology: str
    """Name of the machine."""
    world_size: int
    """W."""
    global_batch_size: int
    """G."""
    step_s: float
    """Of the slowest rank."""
    samples_per_s: float
    communication_s: float
    """All collectives of a step, one after the other."""
    communication_share: float
    """Of the step: what it would be shorter by if ranks talked in no time."""
    parts_s: dict[str, float]
    """Parts of the slowest rank, not all one after the other: see docs/scaling.md."""
    ranks: tuple[RankCost, ...]

    @property
    def most_bytes(self) -> int:
        """Of the fullest rank."""
        return max(rank.total_bytes for rank in self.ranks)


def predict(plan: ShardingPlan, workload: Workload, topology: Topology) -> Prediction:
    """Work out what a plan will cost.

    Args:
        plan: Of the workload's tables.
        workload: A step.
        topology: The machine.
    """
    model = CostModel(workload, topology, plan.world_size)
    loads = np.sum([model.load(name, table) for name, table in plan.tables.items()], 0)
    return predict_loads(model, loads, [len(plan.of_rank(r)) for r in range(plan.world_size)])


def predict_loads(model: CostModel, loads: Floats, num_shards: list[int]) -> Prediction:
    """`predict` for loads at hand.

    Args:
        model: Of the workload and the machine.
        loads: Sum over all tables, shape (W, K).
        num_shards: By rank.
    """
    joint, step = model.joint_ns(loads), model.step_ns(loads)
    silent = msgspec.structs.replace(
        model.topology,
        exchange_gb_s=np.inf,
        reduce_gb_s=np.inf,
        node_gb_s=np.inf,
        latency_us=0.0,
        node_latency_us=0.0,
    )
    alone = CostModel(model.workload, silent, model.world_size).step_ns(loads)
    slowest, fixed = int(step.argmax()), model.replicated
    talk = sum(joint[name] for name in ("ids", "vectors", "vectors", "shared", "top", "rest"))
    step_s = float(step.max()) / 1e9
    return Prediction(
        topology=model.topology.name,
        world_size=model.world_size,
        global_batch_size=model.workload.global_batch_size,
        step_s=step_s,
        samples_per_s=model.workload.global_batch_size / step_s,
        communication_s=talk / 1e9,
        communication_share=1 - float(alone.max()) / float(step.max()),
        parts_s={
            **{name: part / 1e9 for name, part in joint.items()},
            "lookup": float(loads[slowest, Load.LOOKUP_NS]) / 1e9,
            "sort": float(loads[slowest, Load.SORTED]) * model.topology.sort_ns / 1e9,
            "update": float(loads[slowest, Load.UPDATE_NS]) / 1e9,
            "data parallel": float(loads[slowest, Load.GRADIENT_NS]) / 1e9,
            "bottom MLP": (fixed.bottom_forward_ns + fixed.bottom_backward_ns) / 1e9,
            "interaction and top MLP": (fixed.top_forward_ns + fixed.top_backward_ns) / 1e9,
            "MLPs' update": fixed.update_ns / 1e9,
            "start": model.topology.step_us / 1e6,
        },
        ranks=_rank_costs(model, loads, step, num_shards),
    )


def _rank_costs(
    model: CostModel, loads: Floats, step: Floats, num_shards: list[int]
) -> tuple[RankCost, ...]:
    fixed = model.replicated
    held, buffers = model.held_bytes(loads), model.buffer_bytes(loads)
    sent, moved = model.sent_bytes(loads), loads[:, Load.MOVED_BYTES] + fixed.moved_bytes
    activations = fixed.activation_bytes + fixed.batch_bytes + loads[:, Load.PART_BYTES]
    return tuple(
        RankCost(
            rank=r,
            num_shards=num_shards[r],
            table_bytes=int(loads[r, Load.TABLE_BYTES]),
            state_bytes=int(loads[r, Load.STATE_BYTES]),
            dense_bytes=int(fixed.parameter_bytes + loads[r, Load.GRADIENT_BYTES]),
            activation_bytes=int(activations[r]),
            buffer_bytes=int(buffers[r]),
            total_bytes=int(held[r]),
            lookups=int(loads[r, Load.LOOKUPS]),
            moved_bytes=int(moved[r]),
            sent_bytes=int(sent[r]),
            step_s=float(step[r]) / 1e9,
        )
        for r in range(model.world_size)
    )


def compare(prediction: Prediction, samples_per_s: float, most_bytes: int | None = None) -> str:
    """Predicted against actual, a line each for time and memory.

    Args:
        prediction: Of the plan that ran.
        samples_per_s: Measured, over all ranks.
        most_bytes: Memory held at most by the fullest rank; None where it was not measured.
    """
    step_s = prediction.global_batch_size / samples_per_s
    lines = [
        f"a step: predicted {_ms(prediction.step_s)} (rates of {prediction.topology}), measured "
        f"{_ms(step_s)} "
        f"({step_s / prediction.step_s - 1:+.0%}); samples/s: predicted "
        f"{prediction.samples_per_s:,.0f}, measured {samples_per_s:,.0f}"
    ]
    if most_bytes is not None:
        predicted = prediction.most_bytes
        lines.append(
            f"memory of the fullest rank: predicted {size_text(predicted)}, measured "
            f"{size_text(most_bytes)} ({most_bytes / predicted - 1:+.0%})"
        )
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
