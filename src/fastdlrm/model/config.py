"""Shape of a DLRM: the [model] section of a preset. Table sizes come from the dataset."""

from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError

Interaction = Literal["dot", "cat"]
Pooling = Literal["sum", "mean"]
Norm = Literal["none", "batch", "layer"]
Init = Literal["reference", "normal"]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """DLRM: bottom MLP and embedding bags, interaction, top MLP.

    Source: Naumov et al. 2019, arXiv:1906.00091.
    """

    embedding_dim: int
    """D, of every table. More: more capacity, memory and overfitting."""
    bottom_mlp: tuple[int, ...]
    """Widths of the bottom MLP's layers; the last equals embedding_dim. Empty where the dataset has
    no dense feature."""
    top_mlp: tuple[int, ...]
    """Widths of the top MLP's hidden layers; the output layer of width 1 is added."""
    interaction: Interaction = "dot"
    """dot: pairwise dot products; cat: concatenation."""
    include_diagonal: bool = False
    """Whether dot also emits each vector's product with itself."""
    pooling: Pooling = "sum"
    """Of the rows of a bag."""
    dropout: float = 0.0
    """Share of each hidden activation dropped in training."""
    norm: Norm = "none"
    """Between a hidden layer's linear part and its ReLU."""
    init: Init = "reference"
    """Of the tables. reference: U(+-sqrt(1 / rows)); normal: N(0, embedding_std^2)."""
    embedding_std: float = 0.01
    """Standard deviation of init "normal"."""

    def __post_init__(self) -> None:
        if self.embedding_dim < 1:
            raise ConfigError(f"model.embedding_dim is {self.embedding_dim}; 1 or more is allowed")
        if any(width < 1 for width in (*self.bottom_mlp, *self.top_mlp)):
            raise ConfigError("model: a width of bottom_mlp or top_mlp is below 1")
        if self.bottom_mlp and self.bottom_mlp[-1] != self.embedding_dim:
            raise ConfigError(
                f"model.bottom_mlp ends in {self.bottom_mlp[-1]}, embedding_dim is "
                f"{self.embedding_dim}; they must be equal"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}; 0 <= dropout < 1 is allowed")
