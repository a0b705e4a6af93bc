"""Hidden layers of an MLP in 8-bit integers, for prediction on a CPU.

Weights are int8 with a scale an output, activations uint8 with a scale and a zero a layer, fixed
beforehand: a sample's numbers do not depend on the batch, and sums of products are exact. Between
layers nothing leaves the 8 bits: oneDNN multiplies, adds the bias, cuts at zero and rounds at once.

Shapes: B batch, K inputs and N outputs of a layer.

Source: Jacob et al. 2018, arXiv:1712.05877; the operators are those of torch's PT2E quantisation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdlrm.kernels.activation_codes import LARGEST_CODE, activation_codes

LARGEST_WEIGHT = 127


class Range(NamedTuple):
    """The numbers that codes 0 .. 255 span; what lies beyond is cut."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Between neighbouring codes."""
        return max(self.high - self.low, 1e-12) / LARGEST_CODE

    @property
    def zero(self) -> int:
        """The code of 0, which is exact."""
        return min(max(round(-self.low / self.scale), 0), LARGEST_CODE)


def range_of(activations: Tensor, cut_share: float = 1e-4) -> Range:
    """The range of a layer's input, its extreme numbers cut on either side; it holds 0.

    Args:
        activations: Of many samples, any shape.
        cut_share: Of the numbers, on each side.
    """
    ordered = activations.flatten().float().sort().values
    cut = int(len(ordered) * cut_share)
    low, high = ordered[cut].item(), ordered[len(ordered) - 1 - cut].item()
    return Range(min(low, 0.0), max(high, 0.0))


class _Layer(NamedTuple):
    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor
    source: Range


class Int8Layers:
    """Linear, ReLU, linear, ReLU, ... in 8-bit integers; numbers in and out are float32."""

    def __init__(
        self, layers: Sequence[tuple[Tensor, Tensor]], ranges: Sequence[tuple[float, float]]
    ) -> None:
        """Round the weights.

        Args:
            layers: Weight (N, K) and bias (N,) of each, float32, on the CPU.
            ranges: Of each layer's input.

        Raises:
            ValueError: This torch has no such products, or ranges are missing.
        """
        if not has_int8_products():
            raise ValueError("this build of torch multiplies no 8-bit integers (oneDNN is missing)")
        if len(layers) != len(ranges):
            raise ValueError(
                f"{len(ranges)} ranges for {len(layers)} layers; one a layer is needed"
            )
        self._layers = [
            _rounded(weight, bias, Range(*span))
            for (weight, bias), span in zip(layers, ranges, strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """The last layer's output.

        Args:
            x: Shape (B, K), float32.

        Returns:
            Shape (B, N), float32.
        """
        if not self._layers:
            return x
        source = self._layers[0].source
        y = activation_codes(x, source.scale, source.zero)
        for layer, after in zip(self._layers, [*self._layers[1:], None], strict=True):
            target = Range(0.0, 0.0) if after is None else after.source
            is_last = after is None
            y = torch.ops.onednn.qlinear_pointwise(
                y,
                layer.source.scale,
                layer.source.zero,
                layer.packed,
                layer.scales,
                layer.zeros,
                layer.bias,
                1.0 if is_last else target.scale,
                0 if is_last else target.zero,
                torch.float32 if is_last else torch.uint8,
                "relu",
                [],
                "",
            )
        return y


def has_int8_products() -> bool:
    """Whether this build of torch can multiply 8-bit integers on the CPU."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def rounded_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as int8, shape (N, K), and the scale of each output, shape (N,)."""
    scales = weight.abs().amax(1) / LARGEST_WEIGHT
    scales = torch.where(scales == 0, 1.0, scales)
    codes = torch.round(weight / scales.unsqueeze(1)).clamp_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    return codes.to(torch.int8), scales


def _rounded(weight: Tensor, bias: Tensor, source: Range) -> _Layer:
    codes, scales = rounded_weights(weight)
    packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return _Layer(packed, scales, zeros, bias.float(), source)
