"""The interactions a model may have, small: what tests are run for each of."""

import numpy as np
import torch
from torch import nn

from fastdlrm.model.build import build_interaction
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.cross import CrossInteraction, CrossVectorInteraction
from fastdlrm.model.deep import DeepInteraction
from fastdlrm.model.factorization import FactorizationInteraction
from fastdlrm.model.interaction import (
    DotInteraction,
    Interaction,
    ProjectionInteraction,
    Vectors,
)
from tests import oracles

SETTINGS: dict[str, dict[str, object]] = {
    "dot": {"interaction": "dot"},
    "dot_self": {"interaction": "dot", "include_diagonal": True},
    "cat": {"interaction": "cat"},
    "cross": {"interaction": "cross", "num_cross_layers": 3, "cross_rank": 5},
    "projection": {
        "interaction": "projection",
        "projection_branch1": (11, 2),  # in multiples of D, but for the hidden layer
        "projection_branch2": (3,),
    },
    "fm": {"interaction": "fm"},
    "dcn": {"interaction": "cross_vector", "num_cross_layers": 3, "deep_mlp": (7, 5)},
    "dot_deep": {"interaction": "dot", "deep_mlp": (6,)},
}
"""Keys of the [model] section by name; of projection the last widths are in multiples of D."""


def settings(name: str, dim: int) -> dict[str, object]:
    """Keys of the [model] section."""
    found = dict(SETTINGS[name])
    for key in ("projection_branch1", "projection_branch2"):
        if key in found:
            *hidden, last = found[key]
            found[key] = (*hidden, last * dim)
    return found


def make_interaction(
    name: str,
    num_features: int,
    dim: int,
    has_dense: bool = True,
    generator: torch.Generator | None = None,
) -> Interaction:
    """An interaction with drawn weights; biases, which begin as zeros, are drawn too."""
    config = ModelConfig(embedding_dim=dim, bottom_mlp=(), top_mlp=(), **settings(name, dim))
    generator = generator or torch.Generator().manual_seed(3)
    made = build_interaction(config, Vectors(num_features, dim, has_dense), generator)
    with torch.no_grad():
        for name_of, parameter in made.named_parameters():
            if name_of.endswith("bias"):
                parameter.normal_(0, 0.3, generator=generator)
    return made


def expected(interaction: Interaction, vector: np.ndarray | None, pooled: np.ndarray) -> np.ndarray:
    """What an interaction gives, by the oracles, in float64."""
    joined = oracles.cat_interaction(vector, pooled)
    if isinstance(interaction, DeepInteraction):
        deep = oracles.mlp(joined, linears(interaction.deep_mlp), relu_last=True)
        return np.concatenate([expected(interaction.beside, vector, pooled), deep], 1)
    if isinstance(interaction, FactorizationInteraction):
        return oracles.factorization(vector, pooled)
    if isinstance(interaction, CrossVectorInteraction):
        layers = list(zip(numbers(interaction.weight), numbers(interaction.bias), strict=True))
        return oracles.cross_vector_network(joined, layers)
    if isinstance(interaction, DotInteraction):
        return oracles.dot_interaction(vector, pooled, interaction.include_diagonal)
    if isinstance(interaction, CrossInteraction):
        names = ("v", "u", "bias")
        layers = [[numbers(getattr(layer, name)) for name in names] for layer in interaction.layers]
        return oracles.cross_network(joined, layers)
    if isinstance(interaction, ProjectionInteraction):
        branches = (interaction.branch1, interaction.branch2)
        ends = [oracles.mlp(joined, linears(branch), relu_last=True) for branch in branches]
        return oracles.projection(vector, *ends, pooled.shape[2])
    return joined


def linears(mlp: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each linear layer, in float64."""
    return [(numbers(m.weight), numbers(m.bias)) for m in mlp if isinstance(m, nn.Linear)]


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers in float64."""
    return tensor.detach().double().numpy()
