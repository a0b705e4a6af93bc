"""Layers of an MLP, and the distribution of their first weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastdlrm.model.mlp import BatchNorm, build_mlp
from tests import oracles


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kinds(mlp: nn.Sequential) -> list[type[nn.Module]]:
    return [type(layer) for layer in mlp]


def layers(mlp: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    linears = [m for m in mlp if isinstance(m, nn.Linear)]
    return [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in linears]


def test_hidden_layers_end_in_relu_and_the_output_does_not() -> None:
    assert kinds(build_mlp(3, [4, 5], generator=generator())) == [nn.Linear, nn.ReLU] * 2
    with_output = build_mlp(3, [4], out_features=1, generator=generator())
    assert kinds(with_output) == [nn.Linear, nn.ReLU, nn.Linear]
    assert kinds(build_mlp(3, [], out_features=1, generator=generator())) == [nn.Linear]


@pytest.mark.parametrize(("norm", "layer"), [("batch", BatchNorm), ("layer", nn.LayerNorm)])
def test_norm_stands_before_relu_and_dropout_after(norm: str, layer: type[nn.Module]) -> None:
    mlp = build_mlp(3, [4], out_features=1, norm=norm, dropout=0.25, generator=generator())
    assert kinds(mlp) == [nn.Linear, layer, nn.ReLU, nn.Dropout, nn.Linear]
    assert isinstance(mlp[3], nn.Dropout)
    assert mlp[3].p == 0.25


def test_batch_norm_is_torchs_for_batches_of_several_rows() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm1d(3)
    for size in (2, 7):
        x = torch.randn(size, 3, generator=generator(size))
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_batch_norm_of_one_row_takes_the_running_statistics_and_leaves_them() -> None:
    """torch refuses the row in training: one value has no variance.

    By hand, eps aside: (5 - 1) / sqrt(4) * 3 + 0.5 = 6.5, whose slope in the 5 is 3 / 2.
    """
    norm = BatchNorm(1).train()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    norm.weight.data.fill_(3.0)
    norm.bias.data.fill_(0.5)
    x = torch.tensor([[5.0]], requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.item() == pytest.approx(6.5, rel=1e-5)
    assert x.grad.item() == pytest.approx(1.5, rel=1e-5)
    assert norm.weight.grad.item() == pytest.approx(2.0, rel=1e-5)
    assert (norm.running_mean.item(), norm.running_var.item()) == (1.0, 4.0)
    assert norm.num_batches_tracked.item() == 0


@pytest.mark.parametrize("out_features", [0, 1])
def test_forward_matches_the_oracle(out_features: int) -> None:
    mlp = build_mlp(3, [4, 5], out_features=out_features, generator=generator())
    x = torch.randn(6, 3, generator=generator())
    expected = oracles.mlp(x.double().numpy(), layers(mlp), relu_last=not out_features)
    np.testing.assert_allclose(mlp(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_reference_init_statistics() -> None:
    linear = build_mlp(300, [500], generator=generator())[0]
    assert isinstance(linear, nn.Linear)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.02)
    assert abs(linear.weight.mean().item()) < 0.001
    assert linear.bias.std().item() == pytest.approx(math.sqrt(1 / 500), rel=0.1)


def test_only_the_given_generator_is_drawn_from() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = build_mlp(3, [4], generator=generator(1))
    two = build_mlp(3, [4], generator=generator(1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
