"""A `Predictor` whose MLPs are computed in 8-bit integers, and the ranges that takes.

The first layer, of the dense features, and the last, of one output, stay float32: they take little
time, and their rounding would cost the most.

Shapes: B batch.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.int8_mlp import Int8Layers, Range, range_of
from fastdlrm.model.predictor import EvaluatedLayer, Predictor, through


class Int8Predictor(Predictor):
    """Predicts on a CPU, coarser and faster; otherwise as `Predictor`."""

    def __init__(self, model: DLRM, ranges: Iterable[tuple[float, float]]) -> None:
        """Round the weights.

        Args:
            model: Stays as it is, on the CPU.
            ranges: As `activation_ranges` found them.

        Raises:
            ValueError: The MLPs have normalisations, this torch has no such products, or the
                ranges are another model's.
        """
        super().__init__(model)
        if any(layer.norm is not None for layer in (*self._bottom, *self._top)):
            raise ValueError("MLPs with normalisations have no 8-bit form; use fp32 or bf16")
        self._first, rest = self._bottom[:1], self._bottom[1:]
        spans = list(ranges)
        self._int8_bottom = Int8Layers(_plain(rest), spans[: len(rest)])
        self._int8_top = Int8Layers(_plain(self._top), spans[len(rest) :])

    def _through_bottom(self, dense: Tensor) -> Tensor:
        return self._int8_bottom(through(self._first, dense))

    def _through_top(self, joined: Tensor) -> Tensor:
        return self._int8_top(joined)


class _Recorder(Predictor):
    """Keeps what goes into each layer that `Int8Predictor` rounds."""

    def __init__(self, model: DLRM) -> None:
        super().__init__(model)
        self.inputs: list[list[Tensor]] = []

    def _through_bottom(self, dense: Tensor) -> Tensor:
        self.inputs.append([])
        return self._recorded(self._bottom[1:], through(self._bottom[:1], dense))

    def _through_top(self, joined: Tensor) -> Tensor:
        if not self._bottom:
            self.inputs.append([])
        return self._recorded(self._top, joined)

    def _recorded(self, layers: list[EvaluatedLayer], x: Tensor) -> Tensor:
        for layer in layers:
            self.inputs[-1].append(x)
            x = through([layer], x)
        return x


@torch.inference_mode()
def activation_ranges(model: DLRM, batches: Iterable[Batch]) -> tuple[Range, ...]:
    """The range of the input of each layer that is rounded, bottom MLP first.

    Args:
        model: On the CPU.
        batches: Rows such as will be predicted; some thousands.
    """
    recorder = _Recorder(model)
    for batch in batches:
        recorder(batch.dense, batch.sparse)
    layers = zip(*recorder.inputs, strict=True)
    return tuple(range_of(torch.cat([x.flatten() for x in inputs])) for inputs in layers)


def _plain(layers: list[EvaluatedLayer]) -> list[tuple[Tensor, Tensor]]:
    """Weight (N, K) and bias of each."""
    return [(torch.cat(layer.pieces).t().contiguous(), layer.bias) for layer in layers]
