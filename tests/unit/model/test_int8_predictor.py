"""MLPs in integers against integer arithmetic in numpy, and against float32 within their steps."""

import numpy as np
import pytest
import torch

from fastdlrm.batch import Batch
from fastdlrm.model.int8_mlp import Int8Layers, Range, has_int8_products, range_of, rounded_weights
from fastdlrm.model.int8_predictor import Int8Predictor, activation_ranges
from fastdlrm.model.predictor import Predictor
from tests.unit.model.test_predictor import make_inputs, make_model

pytestmark = pytest.mark.skipif(not has_int8_products(), reason="this torch has no oneDNN")


LARGE = {"bottom": (256, 200, 16, 8), "top": (512, 96, 400)}
"""In each MLP layers that are rounded, between some that are not."""


def as_batch(B: int = 300, num_dense: int = 3) -> Batch:
    dense, sparse = make_inputs(num_dense, False, B)
    return Batch(dense=dense, sparse=sparse, labels=torch.zeros(B))


def test_layers_are_integer_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, ranges = [(24, 40), (16, 24), (32, 16)], [Range(-3.0, 5.0), Range(0.0, 9.0), Range(0, 7)]
    layers = [
        (torch.randn(n, k, generator=generator) / 4, torch.randn(n, generator=generator))
        for n, k in sizes
    ]
    x = torch.randn(50, 40, generator=generator) * 2
    found = Int8Layers(layers, ranges)(x)
    expected = x.numpy().astype(np.float64)
    for (weight, bias), source in zip(layers, ranges, strict=True):
        codes = np.clip(np.round(expected / source.scale) + source.zero, 0, 255).astype(np.int64)
        rounded, scales = rounded_weights(weight)
        sums = (codes - source.zero) @ rounded.numpy().astype(np.int64).T
        numbers = sums * source.scale * scales.numpy() + bias.numpy()
        expected = np.maximum(numbers, 0)
    # a code may fall to the other side of a half in float32: one step of the last layer's input
    # times a weight moves an output by less than this
    steps = ranges[-1].scale * layers[-1][0].abs().max().item()
    assert np.abs(found.numpy() - expected).max() < 4 * steps
    assert np.median(np.abs(found.numpy() - expected)) < 1e-5


def test_range_holds_zero_and_cuts_both_ends() -> None:
    numbers = torch.cat([torch.linspace(1, 2, 9998), torch.tensor([-50.0, 60.0])])
    found = range_of(numbers, cut_share=1e-3)
    assert found.low == 0
    assert 1.9 < found.high < 2
    assert found.zero == 0
    assert Range(-1.0, 1.0).zero in (127, 128)


@pytest.mark.parametrize("interaction", ["dot", "cat", "cross"])
@pytest.mark.parametrize("num_dense", [3, 0])
def test_is_near_and_its_bits_are_a_samples_own(num_dense: int, interaction: str) -> None:
    model = make_model(interaction, num_dense, **LARGE).eval()
    batch = as_batch(num_dense=num_dense)
    coarse = Int8Predictor(model, activation_ranges(model, [batch]))
    together = coarse(batch.dense, batch.sparse)
    exact = Predictor(model)(batch.dense, batch.sparse)
    assert (together - exact).abs().mean() < 0.05 * exact.std()
    assert not torch.equal(together, exact)
    for start, count in ((0, 1), (20, 7), (3, 16), (31, 257)):
        part = batch.slice(start, start + count)
        assert torch.equal(coarse(part.dense, part.sparse), together[start : start + count])


def test_a_layer_without_relu_stays_float32() -> None:
    """Its 4,096 x 8 weights would be enough."""
    model = make_model(bottom=(4096, 8), top=(512, 96)).eval()
    batch = as_batch()
    assert len(activation_ranges(model, [batch])) == 2
    model.bottom_mlp = model.bottom_mlp[:-1]
    ranges = activation_ranges(model, [batch])
    assert len(ranges) == 1
    coarse, exact = Int8Predictor(model, ranges), Predictor(model)
    difference = coarse(batch.dense, batch.sparse) - exact(batch.dense, batch.sparse)
    assert difference.abs().mean() < 0.05 * exact(batch.dense, batch.sparse).std()


def test_refusals() -> None:
    model = make_model(norm="layer").eval()
    with pytest.raises(ValueError, match="normalisations have no 8-bit form; use fp32 or bf16"):
        Int8Predictor(model, [])
    with pytest.raises(ValueError, match="no layer between the first and the last has 32768 weigh"):
        Int8Predictor(make_model().eval(), [])
    large = make_model(**LARGE).eval()
    with pytest.raises(ValueError, match="2 ranges for 3 layers of 32768 weights or more; one a"):
        Int8Predictor(large, [(0.0, 1.0), (0.0, 1.0)])
    with pytest.raises(ValueError, match="1 ranges for 0 layers; one a layer is needed"):
        Int8Layers([], [(0.0, 1.0)])


def test_ranges_are_those_of_the_rounded_layers() -> None:
    """256 to 200 in the bottom MLP, 512 to 96 and 96 to 400 in the top MLP: their inputs."""
    model, batch = make_model(**LARGE).eval(), as_batch()
    found = activation_ranges(model, [batch])
    inputs: dict[int, torch.Tensor] = {}

    def keep(layer: torch.nn.Module, x: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        inputs[layer.weight.numel()] = x[0]

    for module in (*model.bottom_mlp.modules(), *model.top_mlp.modules()):
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(keep)
    with torch.no_grad():
        model(batch.dense, batch.sparse)
    for span, size in zip(found, (256 * 200, 512 * 96, 96 * 400), strict=True):
        expected = range_of(inputs[size])
        assert tuple(span) == pytest.approx(tuple(expected), rel=1e-5)
