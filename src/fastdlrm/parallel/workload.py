"""What a train step does, as numbers: all that the planner knows of a model and its data.

Shapes: G global batch, F sparse features, R rows of a table, D embedding dim.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.parallel.footprint import exchange_bytes

Floats = NDArray[np.float64]


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sparse feature and which rows its ids are."""

    table: str
    ids_per_sample: float = 1.0
    """Mean ids a bag (its pooling factor); 1 for single ids."""
    is_bag: bool = False
    """Whether a sample holds any number of ids: then its length travels with them."""
    shares: tuple[float, ...] = ()
    """Share of its ids in rows 2^k - 1 .. 2^(k+1) - 2, by k; empty: every row is as likely."""


class Interaction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What joins the vectors of a sample, beyond reading them."""

    flop: float = 0.0
    """Of the forward pass, a sample; the backward pass takes twice as many."""
    num_parameters: int = 0
    """Trained and replicated with the MLPs."""
    num_kept: int = 0
    """Numbers a sample kept for the backward pass, the top MLP's input left out."""


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A train step of G samples, whatever the ranks it runs on."""

    num_embeddings: dict[str, int]
    """R by table, in the model's order."""
    features: tuple[Feature, ...]
    embedding_dim: int
    """D."""
    table_dims: dict[str, int] = {}
    """Columns of the tables that have fewer than D."""
    bottom_mlp: tuple[int, ...]
    """Widths, the dense features first; empty where there are none."""
    top_mlp: tuple[int, ...]
    """Widths, the interaction's result first, 1 last."""
    interaction: Interaction = Interaction()
    global_batch_size: int
    """G."""
    precision: str = "fp32"
    """fp32, tf32 or bf16: of the products."""
    table_dtype: str = "fp32"
    """fp32, bf16 or fp16."""
    exchange_dtype: str = "auto"
    """Of vectors and gradients on their way between ranks: auto (bf16 under precision bf16, else
    fp32), fp32 or bf16."""
    dense_optimizer: str = "sgd"
    """sgd, adagrad, adam or adamw."""
    sparse_optimizer: str = "sgd"
    """sgd, adagrad, rowwise_adagrad or adam."""

    learns_weights: bool = False
    """Whether each row has a learned pooling weight."""

    def dim_of(self, table: str) -> int:
        """Columns of a table."""
        return self.table_dims.get(table, self.embedding_dim)

    @property
    def exchange_bytes(self) -> int:
        """Of a number of a pooled vector or its gradient between ranks."""
        return exchange_bytes(self.exchange_dtype, self.precision)


class Traffic:
    """How often a table's rows are read in one step of some samples.

    Within a run of rows 2^k - 1 .. 2^(k+1) - 2 every row counts as likely as the next, which
    overstates how many are different.

    Args:
        features: Those of the table.
        num_rows: R.
        num_samples: Of the step.
    """

    def __init__(self, features: list[Feature], num_rows: int, num_samples: float) -> None:
        num_runs = max(num_rows, 1).bit_length()
        self._edges: Floats = np.minimum(2.0 ** np.arange(num_runs + 1) - 1, num_rows)
        sizes = np.diff(self._edges)
        ids = np.zeros(num_runs)
        for feature in features:
            shares = sizes / max(num_rows, 1)
            if feature.shares:
                shares = np.zeros(num_runs)
                known = feature.shares[:num_runs]
                shares[: len(known)] = known
            ids += num_samples * feature.ids_per_sample * shares
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = np.where(sizes > 0, sizes * -np.expm1(-ids / sizes), 0.0)
        self._ids = np.concatenate([[0.0], np.cumsum(ids)])
        self._seen = np.concatenate([[0.0], np.cumsum(seen)])

    def between(self, first: Floats, stop: Floats) -> tuple[Floats, Floats]:
        """Ids that are rows first .. stop - 1, and how many different rows among these.

        With n ids on r rows, each as likely, r * (1 - exp(-n / r)) rows are expected to be seen.
        """
        ids, seen = (
            np.interp(stop, self._edges, below) - np.interp(first, self._edges, below)
            for below in (self._ids, self._seen)
        )
        return ids, seen
