"""Every interaction against its oracle, forward and backward, in float64, and its own figures."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdlrm.errors import ConfigError
from fastdlrm.model.build import build_interaction
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.cross import CrossInteraction
from fastdlrm.model.interaction import Interaction, Vectors
from tests.interactions import SETTINGS, expected, make_interaction, numbers, settings

B, F, D = 3, 2, 4


def inputs(num_features: int, has_dense: bool) -> tuple[Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(B, D, generator=generator, dtype=torch.float64)
    pooled = torch.randn(num_features, B, D, generator=generator, dtype=torch.float64)
    return (vector if has_dense else None), pooled.transpose(0, 1)


def oracle(interaction: Interaction, vector: Tensor | None, pooled: Tensor) -> np.ndarray:
    return expected(interaction, None if vector is None else numbers(vector), numbers(pooled))


@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("num_features", [1, 2, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_forward_is_the_oracles(name: str, num_features: int, has_dense: bool) -> None:
    if name in ("dot", "dot_deep") and num_features + has_dense < 2:
        pytest.skip("one vector has no pair")
    made = make_interaction(name, num_features, D, has_dense).double()
    vector, pooled = inputs(num_features, has_dense)
    found = made(vector, pooled)
    assert found.shape == (B, made.width)
    np.testing.assert_allclose(numbers(found), oracle(made, vector, pooled), rtol=1e-12, atol=1e-12)
    plain = made.compilable()(vector, pooled)
    np.testing.assert_allclose(numbers(plain), numbers(found), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_dense", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_differences_of_the_oracle(name: str, has_dense: bool) -> None:
    made = make_interaction(name, F, D, has_dense).double()
    vector, pooled = inputs(F, has_dense)
    leaves = [pooled, *made.parameters(), *([] if vector is None else [vector])]
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = torch.randn(made.width, generator=torch.Generator().manual_seed(2)).double()
    (made(vector, pooled) @ upstream).sum().backward()
    step, compared = 1e-6, 0
    for leaf in leaves:
        assert leaf.grad is not None
        for place in list(np.ndindex(leaf.shape))[::3]:
            start = leaf[place].item()
            ends = []
            for moved in (start + step, start - step):
                with torch.no_grad():
                    leaf[place] = moved
                ends.append((oracle(made, vector, pooled) @ numbers(upstream)).sum())
            with torch.no_grad():
                leaf[place] = start
            difference = (ends[0] - ends[1]) / (2 * step)
            assert leaf.grad[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-6)
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize("name", SETTINGS)
def test_without_numbers_it_says_the_same_of_itself(name: str) -> None:
    drawn = make_interaction(name, 5, D)
    config = ModelConfig(embedding_dim=D, bottom_mlp=(), top_mlp=(), **settings(name, D))
    undrawn = build_interaction(config, Vectors(5, D, True))
    assert (undrawn.width, undrawn.cost()) == (drawn.width, drawn.cost())
    assert undrawn.num_parameters == drawn.num_parameters
    assert all(parameter.is_meta for parameter in undrawn.parameters())


def test_costs() -> None:
    """Of three vectors of 4, W = 12."""
    cost = {name: make_interaction(name, 2, D).cost() for name in SETTINGS}
    assert cost["dot"].flop == 2 * 3 * 4  # pairs (1,0) (2,0) (2,1)
    assert cost["dot_self"].flop == 2 * 6 * 4
    assert cost["cat"].flop == 0
    # three layers of 12 x 5 and 5 x 12, and twelve products
    assert cost["cross"].flop == 3 * 2 * (60 + 60 + 12)
    # a layer keeps its input, its narrow product and its wide one
    assert cost["cross"].num_kept == 3 * (12 + 5 + 12)
    # 12 x 11, 11 x 8 and 12 x 12; 2 x 3 products of 4
    assert cost["projection"].flop == 2 * (132 + 88 + 144 + 6 * 4)
    assert cost["projection"].num_kept == 12 + 11 + 8 + 12
    assert make_interaction("cross", 2, D).num_parameters == 3 * (60 + 60 + 12)
    assert make_interaction("projection", 2, D).num_parameters == 132 + 11 + 88 + 8 + 144 + 12
    assert make_interaction("dot", 2, D).num_parameters == 0
    # squares of 12 numbers and of 4 sums
    assert cost["fm"].flop == 2 * (12 + 4)
    assert make_interaction("fm", 2, D).num_parameters == 0
    # a product of 12 x 3 for all layers, then alpha; beside it 12 x 7 and 7 x 5
    assert cost["dcn"].flop == 2 * (12 * 3 + 12 + 3 + 12 * 7 + 7 * 5)
    assert cost["dcn"].num_kept == 12 + 12 + 7 + 5
    assert make_interaction("dcn", 2, D).num_parameters == 3 * (12 + 12) + 84 + 7 + 35 + 5


def test_a_factorization_machine_by_hand() -> None:
    """Weights 1, 2, 3; factors (1, 2), (3, -1), (0, 4): 6 + (3 - 2) + 8 - 4 = 11."""
    made = build_interaction(
        ModelConfig(embedding_dim=3, bottom_mlp=(), top_mlp=(), interaction="fm"),
        Vectors(2, 3, True),
    )
    vector = torch.tensor([[1.0, 1.0, 2.0]])
    pooled = torch.tensor([[[2.0, 3.0, -1.0], [3.0, 0.0, 4.0]]])
    assert made(vector, pooled).tolist() == [[11.0]]
    assert made.evaluated(torch.float32, 8)(vector, pooled)[:, 0].tolist() == [11.0]
    of_weights = made(vector[:, :1], pooled[:, :, :1])
    assert of_weights.tolist() == [[6.0]]  # logistic regression


def test_a_layer_of_cross_vector_by_hand() -> None:
    """x_0 = (1, 2), w = (3, -1), b = (0.5, 0): x_0 . w = 1, so x_1 = (1, 2) + (0.5, 0) + (1, 2).

    The second layer has w = (2, 0): x_1 . w = 5, so x_2 = 5 (1, 2) + x_1 = (7.5, 14).
    """
    config = ModelConfig(
        embedding_dim=2, bottom_mlp=(), top_mlp=(), interaction="cross_vector", num_cross_layers=2
    )
    made = build_interaction(config, Vectors(1, 2, False), torch.Generator())
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[3.0, -1.0], [2.0, 0.0]]))
        made.bias[0] = torch.tensor([0.5, 0.0])
    assert made(None, torch.tensor([[[1.0, 2.0]]])).tolist() == [[7.5, 14.0]]


def test_a_cross_network_begins_as_torchrecs() -> None:
    """Xavier's normal distribution, biases of 0."""
    drawn = CrossInteraction(Vectors(26, 16, True), 2, 64, torch.Generator().manual_seed(0))
    for layer in drawn.layers:
        assert torch.equal(layer.bias, torch.zeros(432))
        for name in ("v", "u"):
            assert getattr(layer, name).std().item() == pytest.approx(
                (2 / (432 + 64)) ** 0.5, rel=0.02
            )
    assert not torch.equal(drawn.layers[0].u, drawn.layers[1].u)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interaction": "cat", "include_diagonal": True}, r"'cat'; only 'dot' has a diagonal"),
        (
            {"interaction": "cross"},
            r"num_cross_layers is 0 .* 1 or more with cross and cross_ve",
        ),
        ({"interaction": "cross_vector"}, r"num_cross_layers is 0 with .* allowed are 1 or more"),
        (
            {"interaction": "cross_vector", "num_cross_layers": 2, "cross_rank": 3},
            r"cross_rank is 3 with interaction 'cross_vector'; allowed are 1 or more with cross \(",
        ),
        (
            {"interaction": "fm", "top_mlp": (8,)},
            r"top_mlp is \[8\] with interaction 'fm', .* set model.top_mlp = \[\], and model.deep",
        ),
        ({"deep_mlp": (8, 0)}, r"a width of bottom_mlp, top_mlp or deep_mlp is below 1"),
        (
            {"bottom_mlp": (), "bottom_relu": False},
            r"bottom_relu is false with an empty bottom_mlp; .* leave it out",
        ),
        (
            {"interaction": "cross", "num_cross_layers": 2, "cross_rank": -1},
            r"cross_rank is -1 .* 1 or more",
        ),
        ({"cross_rank": 8}, r"cross_rank is 8 with interaction 'dot'; .* 0 with the others"),
        (
            {"interaction": "projection", "projection_branch1": (4,)},
            r"projection_branch2 is \[\] .*takes the widths of 1 layer or more",
        ),
        ({"projection_branch1": (4,)}, r"branch1 is \[4\] with interaction 'dot'; .* others none"),
        (
            {
                "interaction": "projection",
                "projection_branch1": (6,),
                "projection_branch2": (4,),
            },
            r"branch1 is \[6\]; .* last must be a multiple of embedding_dim, 4",
        ),
    ],
)
def test_a_key_belongs_to_its_interaction(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{"embedding_dim": 4, "bottom_mlp": (4,), "top_mlp": (), **changes})
