"""Multi-layer perceptrons: the bottom MLP and the top MLP.

Invariant: every layer but the output layer is Linear, norm, ReLU, dropout, in this order.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdlrm.model.config import Norm


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that a batch of one row does not stop.

    In training a single row has no variance to be normalised by. It is what the last batch of an
    epoch or a micro-batch may hold, so it is normalised by the running statistics, as in
    evaluation, and leaves them as they are.

    Source: Ioffe, Szegedy 2015, arXiv:1502.03167.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise a batch, shape (B, width)."""
        if len(input) > 1:
            return super().forward(input)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


NORMS: dict[Norm, type[nn.Module] | None] = {
    "none": None,
    "batch": BatchNorm,
    "layer": nn.LayerNorm,
}


def build_mlp(
    in_features: int,
    hidden: Sequence[int],
    *,
    out_features: int = 0,
    norm: Norm = "none",
    dropout: float = 0.0,
    generator: torch.Generator | None,
) -> nn.Sequential:
    """Stack layers, drawn as the reference does.

    Args:
        in_features: Width of the input.
        hidden: Widths of the layers that end in ReLU.
        out_features: Width of the linear output layer; 0 for none.
        norm: Between a hidden layer's linear part and its ReLU.
        dropout: Share of each hidden activation dropped in training.
        generator: On the CPU; None: the weights are on no device and take no memory.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((in_features, *hidden)):
        layers += [_linear(fan_in, fan_out, generator), *_after(fan_out, norm, dropout)]
    if out_features:
        last = hidden[-1] if hidden else in_features
        layers.append(_linear(last, out_features, generator))
    return nn.Sequential(*layers)


def layers_of(mlp: nn.Module | None) -> list[nn.Module]:
    """An MLP's modules in order; none where there is no MLP."""
    return [] if mlp is None else list(mlp.children())


def _after(width: int, norm: Norm, dropout: float) -> Iterable[nn.Module]:
    """What follows the linear part of a hidden layer."""
    if (kind := NORMS[norm]) is not None:
        yield kind(width)
    yield nn.ReLU()
    if dropout:
        yield nn.Dropout(dropout)


def drawn_weight(fan_in: int, fan_out: int, generator: torch.Generator | None) -> nn.Parameter:
    """W ~ N(0, 2 / (fan_in + fan_out)), a variance; shape (fan_out, fan_in).

    Args:
        fan_in: Inputs.
        fan_out: Outputs.
        generator: On the CPU; None: nothing is drawn, the numbers are on no device.
    """
    device = "meta" if generator is None else "cpu"
    weight = nn.Parameter(torch.empty(fan_out, fan_in, device=device))
    nn.init.normal_(weight, 0, math.sqrt(2 / (fan_in + fan_out)), generator=generator)
    return weight


def _linear(fan_in: int, fan_out: int, generator: torch.Generator | None) -> nn.Linear:
    """The weight as `drawn_weight`; b ~ N(0, 1 / fan_out), a variance.

    Source: Naumov et al. 2019, arXiv:1906.00091, as its code initialises.
    """
    linear = nn.Linear(fan_in, fan_out, device="meta")
    linear.weight = drawn_weight(fan_in, fan_out, generator)
    linear.bias = nn.Parameter(torch.empty(fan_out, device=linear.weight.device))
    nn.init.normal_(linear.bias, 0, math.sqrt(1 / fan_out), generator=generator)
    return linear
