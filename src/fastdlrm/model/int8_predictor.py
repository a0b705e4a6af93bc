"""A `Predictor` whose large layers are computed in 8-bit integers, and the ranges that takes.

Layers of few weights stay float32: they take little time, and a call in integers costs 30 us before
it multiplies. So do the first layer, of the dense features, and the last, of one output, whose
rounding would cost the most, a layer without ReLU, and the interaction.

Shapes: B batch.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, islice

import torch
from torch import Tensor

from fastdlrm.batch import Batch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.evaluated import EvaluatedLayer, through
from fastdlrm.model.int8_mlp import Int8Layers, Range, range_of
from fastdlrm.model.predictor import Predictor

MIN_WEIGHTS = 2**15
"""A layer of fewer weights stays float32: up to a batch of 100 or more it is the faster for it."""


class Int8Predictor(Predictor):
    """Predicts on a CPU, coarser and faster; otherwise as `Predictor`."""

    def __init__(self, model: DLRM, ranges: Iterable[tuple[float, float]]) -> None:
        """Round the weights.

        Args:
            model: Stays as it is, on the CPU.
            ranges: As `activation_ranges` found them.

        Raises:
            ValueError: The MLPs have normalisations or no large layer, this torch has no such
                products, or the ranges are another model's.
        """
        super().__init__(model)
        if any(layer.norm is not None for layer in (*self._bottom, *self._top)):
            raise ValueError("MLPs with normalisations have no 8-bit form; use fp32 or bf16")
        rounded = [*_rounded(self._bottom, is_bottom=True), *_rounded(self._top, is_bottom=False)]
        if not any(rounded):
            raise ValueError(
                f"no layer between the first and the last has {MIN_WEIGHTS} weights; in smaller "
                "ones integers are slower: use fp32"
            )
        spans = list(ranges)
        if len(spans) != sum(rounded):
            raise ValueError(
                f"{len(spans)} ranges for {sum(rounded)} layers of {MIN_WEIGHTS} weights or more; "
                "one a layer is needed"
            )
        rest = iter(spans)
        self._bottom_steps = list(_steps(self._bottom, rest, is_bottom=True))
        self._top_steps = list(_steps(self._top, rest, is_bottom=False))

    def _through_bottom(self, dense: Tensor) -> Tensor:
        for step in self._bottom_steps:
            dense = step(dense)
        return dense

    def _through_top(self, joined: Tensor) -> Tensor:
        for step in self._top_steps:
            joined = step(joined)
        return joined


class _Recorder(Predictor):
    """Keeps what goes into each layer that `Int8Predictor` rounds."""

    def __init__(self, model: DLRM) -> None:
        super().__init__(model)
        self.inputs: list[list[Tensor]] = []

    def _through_bottom(self, dense: Tensor) -> Tensor:
        self.inputs.append([])
        return self._recorded(self._bottom, dense, is_bottom=True)

    def _through_top(self, joined: Tensor) -> Tensor:
        if not self._bottom:
            self.inputs.append([])
        return self._recorded(self._top, joined, is_bottom=False)

    def _recorded(self, layers: list[EvaluatedLayer], x: Tensor, is_bottom: bool) -> Tensor:
        for layer, is_rounded in zip(layers, _rounded(layers, is_bottom), strict=True):
            if is_rounded:
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


def _rounded(layers: list[EvaluatedLayer], is_bottom: bool) -> list[bool]:
    """Whether each layer is computed in integers; those end in ReLU."""
    sizes = [sum(piece.numel() for piece in layer.pieces) for layer in layers]
    return [
        size >= MIN_WEIGHTS and layer.relu and not (is_bottom and at == 0)
        for at, (layer, size) in enumerate(zip(layers, sizes, strict=True))
    ]


def _steps(
    layers: list[EvaluatedLayer], spans: Iterator[tuple[float, float]], is_bottom: bool
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Neighbouring layers of one kind each; takes a range for each rounded one."""
    kinds = zip(_rounded(layers, is_bottom), layers, strict=True)
    for is_rounded, group in groupby(kinds, key=lambda pair: pair[0]):
        some = [layer for _, layer in group]
        if is_rounded:
            yield Int8Layers(_plain(some), list(islice(spans, len(some))))
        else:
            yield partial(through, some)


def _plain(layers: list[EvaluatedLayer]) -> list[tuple[Tensor, Tensor]]:
    """Weight (N, K) and bias of each."""
    return [(torch.cat(layer.pieces).t().contiguous(), layer.bias) for layer in layers]
