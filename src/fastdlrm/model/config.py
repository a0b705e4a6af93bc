"""Shape of a DLRM: the [model] section of a preset. Table sizes come from the dataset."""

from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError
from fastdlrm.model.compression_config import CompressionConfig
from fastdlrm.model.mixed_dims import MixedDimsConfig

InteractionName = Literal["dot", "cat", "cross", "cross_vector", "projection", "fm"]
Pooling = Literal["sum", "mean"]
WeightedPooling = Literal["none", "learned"]
Norm = Literal["none", "batch", "layer"]
Init = Literal["reference", "normal"]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """DLRM: bottom MLP and embedding bags, interaction, top MLP.

    Source: Naumov et al. 2019, arXiv:1906.00091.
    """

    embedding_dim: int
    """D, of every pooled vector. More: more capacity, memory and overfitting."""
    bottom_mlp: tuple[int, ...]
    """Widths of the bottom MLP's layers; the last equals embedding_dim. Empty where the dataset has
    no dense feature."""
    bottom_relu: bool = True
    """Whether the last layer of the bottom MLP ends in ReLU, as DLRM's. false with a single layer:
    the dense features take part linearly."""
    top_mlp: tuple[int, ...]
    """Widths of the top MLP's hidden layers; the output layer of width 1 is added. Empty: the
    output layer alone, and the model is linear in what the interaction gives."""
    interaction: InteractionName = "dot"
    """Of the bottom MLP's result and the pooled vectors. dot: the dot product of every two; cat:
    all side by side; cross: a cross network on cat (DCN-v2); cross_vector: one whose layers have a
    vector each (DCN); projection: dot products of vectors that two MLPs make of cat; fm: a
    factorization machine, whose weights are the first number of each vector."""
    include_diagonal: bool = False
    """Whether dot also emits each vector's product with itself."""
    num_cross_layers: int = 0
    """Of cross and cross_vector. Each more: products of one more number."""
    cross_rank: int = 0
    """Of each cross layer's two matrices. More: more capacity and time; above half the width of cat
    a full matrix would be cheaper."""
    projection_branch1: tuple[int, ...] = ()
    """Widths of the first MLP's layers of projection; the last is a multiple of embedding_dim."""
    projection_branch2: tuple[int, ...] = ()
    """Of the second MLP's, likewise. The result has the product of the two multiples."""
    deep_mlp: tuple[int, ...] = ()
    """Widths of an MLP on cat, whose result goes to the top MLP beside the interaction's. Empty:
    none."""
    table_dims: dict[str, int] = {}
    """Columns d of the tables that have fewer than embedding_dim; their vectors are zero from d
    on. Fewer: less memory and less capacity."""
    mixed_dims: MixedDimsConfig | None = None
    """A rule that table_dims are worked out by."""
    table_projection: bool = False
    """Whether a matrix makes the vectors of each such table embedding_dim long."""
    pooling: Pooling = "sum"
    """Of the rows of a bag: their sum, or that divided by the bag's number of ids."""
    table_pooling: dict[str, Pooling] = {}
    """By table, where it is another one than `pooling`."""
    weighted_pooling: WeightedPooling = "none"
    """learned: a number of each row's own, 1 at first, scales it in every bag."""
    dropout: float = 0.0
    """Share of each hidden activation dropped in training."""
    norm: Norm = "none"
    """Between a hidden layer's linear part and its ReLU."""
    init: Init = "reference"
    """Of the tables. reference: U(+-sqrt(1 / rows)); normal: N(0, embedding_std^2)."""
    embedding_std: float = 0.01
    """Standard deviation of init "normal"."""
    compression: CompressionConfig = CompressionConfig()
    """Which tables are held in fewer rows than they have ids."""

    def __post_init__(self) -> None:
        if self.embedding_dim < 1:
            raise ConfigError(f"model.embedding_dim is {self.embedding_dim}; 1 or more is allowed")
        if any(width < 1 for width in (*self.bottom_mlp, *self.top_mlp, *self.deep_mlp)):
            raise ConfigError("model: a width of bottom_mlp, top_mlp or deep_mlp is below 1")
        if self.bottom_mlp and self.bottom_mlp[-1] != self.embedding_dim:
            raise ConfigError(
                f"model.bottom_mlp ends in {self.bottom_mlp[-1]}, embedding_dim is "
                f"{self.embedding_dim}; they must be equal"
            )
        if not (self.bottom_relu or self.bottom_mlp):
            raise ConfigError(
                "model.bottom_relu is false with an empty bottom_mlp; without dense features leave "
                "it out"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}; 0 <= dropout < 1 is allowed")
        for table, dim in self.table_dims.items():
            if not 1 <= dim <= self.embedding_dim:
                raise ConfigError(
                    f"model.table_dims.{table} is {dim}; 1 .. embedding_dim "
                    f"({self.embedding_dim}) is allowed"
                )
        self._check_interaction()

    def _check_interaction(self) -> None:
        """Each key belongs to one interaction, which needs it."""
        kind = self.interaction
        if self.include_diagonal and kind != "dot":
            raise ConfigError(
                f"model.include_diagonal is true with interaction {kind!r}; only 'dot' has a "
                "diagonal: leave it out"
            )
        if kind == "fm" and self.top_mlp:
            raise ConfigError(
                f"model.top_mlp is {list(self.top_mlp)} with interaction 'fm', whose result is a "
                "logit; set model.top_mlp = [], and model.deep_mlp for an MLP beside it"
            )
        for name, kinds in (
            ("num_cross_layers", ("cross", "cross_vector")),
            ("cross_rank", ("cross",)),
        ):
            value = getattr(self, name)
            if (value > 0) != (kind in kinds) or value < 0:
                raise ConfigError(
                    f"model.{name} is {value} with interaction {kind!r}; allowed are 1 or more "
                    f"with {' and '.join(kinds)} (MLPerf's DLRM-DCNv2 has 3 layers of rank 512), 0 "
                    "with the others"
                )
        for name in ("projection_branch1", "projection_branch2"):
            widths = getattr(self, name)
            if bool(widths) != (kind == "projection"):
                raise ConfigError(
                    f"model.{name} is {list(widths)} with interaction {kind!r}; 'projection' takes "
                    "the widths of 1 layer or more, the others none"
                )
            if any(width < 1 for width in widths) or (widths and widths[-1] % self.embedding_dim):
                raise ConfigError(
                    f"model.{name} is {list(widths)}; widths of 1 or more are allowed, and the "
                    f"last must be a multiple of embedding_dim, {self.embedding_dim}"
                )
