"""Costs that no placement of tables alters: the MLPs and the interaction, on every rank alike.

Shapes: B local batch, F sparse features, D embedding dim.
"""

from dataclasses import dataclass
from itertools import pairwise

from fastdlrm.parallel import footprint
from fastdlrm.parallel.topology import Topology
from fastdlrm.parallel.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Replicated:
    """What a step of B samples takes, the tables left out.

    Each activation is written and read in the forward pass, its gradient in the backward pass; the
    vectors of a sample are read in both, their gradients written.

    Attributes:
        bottom_forward_ns: Of the bottom MLP.
        bottom_backward_ns: Likewise; its input has no gradient.
        top_forward_ns: Of the interaction and the top MLP.
        top_backward_ns: Likewise.
        update_ns: Of the MLPs' parameters.
        bottom_gradient_bytes: Summed over ranks, in float32.
        top_gradient_bytes: Likewise.
        moved_bytes: In memory.
        parameter_bytes: Held: parameters, gradients, optimizer.
        activation_bytes: Held at most.
        batch_bytes: Of the batches on their way.
    """

    bottom_forward_ns: float
    bottom_backward_ns: float
    top_forward_ns: float
    top_backward_ns: float
    update_ns: float
    bottom_gradient_bytes: float
    top_gradient_bytes: float
    moved_bytes: float
    parameter_bytes: float
    activation_bytes: float
    batch_bytes: float

    @property
    def held_bytes(self) -> float:
        """All that is held."""
        return self.parameter_bytes + self.activation_bytes + self.batch_bytes

    @property
    def all_ns(self) -> float:
        """One part after the other."""
        forward = self.bottom_forward_ns + self.top_forward_ns
        return forward + self.bottom_backward_ns + self.top_backward_ns + self.update_ns

    @classmethod
    def of(cls, workload: Workload, topology: Topology, num_samples: int) -> "Replicated":
        """Count and divide.

        Args:
            workload: The step.
            topology: Its machine.
            num_samples: B.
        """
        bottom, top, joint = workload.bottom_mlp, workload.top_mlp, workload.interaction
        B, F, D = num_samples, len(workload.features), workload.embedding_dim
        width = footprint.compute_bytes(workload.precision)
        is_gpu = topology.device == "cuda"
        macs_bottom, macs_top = (sum(a * b for a, b in pairwise(mlp)) for mlp in (bottom, top))
        first = bottom[0] * bottom[1] if bottom else 0
        vectors = (F + bool(bottom)) * D
        wide_bottom, wide_top = 2 * sum(bottom), 2 * (sum(top) + joint.num_kept)
        of_bottom = footprint.num_parameters(bottom)
        of_top = footprint.num_parameters(top) + joint.num_parameters
        state = footprint.STATE_NUMBERS[workload.dense_optimizer]
        # a gradient read, a parameter and its state read and written, its copy in bf16 written
        update_bytes = (of_bottom + of_top) * (12 + 8 * state + (width if width < 4 else 0))
        activations = footprint.activation_numbers(bottom, top, F, D, is_gpu=is_gpu)
        numbers = sum(f.ids_per_sample + f.is_bag for f in workload.features) + sum(bottom[:1]) + 1
        batches = footprint.BATCHES_ON_GPU if is_gpu else footprint.BATCHES_ON_HOST
        per_parameter = footprint.parameter_bytes(workload.dense_optimizer, workload.precision)

        def ns(flop: float, numbers: int) -> float:
            gemm_ns = flop / (topology.gemm_tflop_s[workload.precision] * 1e3)
            return B * (gemm_ns + numbers * width / topology.copy_gb_s)

        return cls(
            bottom_forward_ns=ns(2 * macs_bottom, wide_bottom),
            bottom_backward_ns=ns(4 * macs_bottom - 2 * first, wide_bottom),
            top_forward_ns=ns(2 * macs_top + joint.flop, wide_top + vectors),
            top_backward_ns=ns(4 * macs_top + 2 * joint.flop, wide_top + 2 * vectors),
            update_ns=update_bytes / topology.copy_gb_s,
            bottom_gradient_bytes=4.0 * of_bottom,
            top_gradient_bytes=4.0 * of_top,
            moved_bytes=B * width * (2 * (wide_bottom + wide_top) + 3 * vectors) + update_bytes,
            parameter_bytes=float((of_bottom + of_top) * per_parameter),
            activation_bytes=float(B * (activations + joint.num_kept) * width),
            batch_bytes=float(batches * B * 4 * numbers),
        )
