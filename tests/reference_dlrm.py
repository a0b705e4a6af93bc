"""The DLRM reference's model and file, written from their description: slow, plain, in torch alone.

A table each feature, bags summed; ReLU after every layer but the last, which ends in a sigmoid; the
dense vector, then its and all vectors' dot products row by row below the diagonal, or all vectors.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class QuotientRemainderBag(nn.Module):
    """What --qr-flag makes of a table: both parts are pooled, then added or multiplied."""

    def __init__(self, rows: int, dim: int, collisions: int, operation: str) -> None:
        super().__init__()
        self.weight_q = nn.Parameter(torch.empty(-(-rows // collisions), dim))
        self.weight_r = nn.Parameter(torch.empty(collisions, dim))
        self.collisions, self.operation = collisions, operation

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Pooled vectors, shape (B, D)."""
        quotients = nn.functional.embedding_bag(
            ids // self.collisions, self.weight_q, offsets, mode="sum"
        )
        remainders = nn.functional.embedding_bag(
            ids % self.collisions, self.weight_r, offsets, mode="sum"
        )
        return quotients * remainders if self.operation == "mult" else quotients + remainders


class ReferenceDLRM(nn.Module):
    """With the reference's names of parameters."""

    def __init__(
        self,
        rows: Sequence[int],
        bottom: Sequence[int],
        top: Sequence[int],
        *,
        interaction: str = "dot",
        itself: bool = False,
        qr: tuple[int, str] | None = None,
        weighted: bool = False,
    ) -> None:
        """`bottom` begins with the number of dense features; `top` lacks its input's width.

        `qr` makes quotient-remainder tables of those above 5 rows: collisions and operation;
        `weighted` is --weighted-pooling learned, of plain tables.
        """
        super().__init__()
        self.interaction, self.itself = interaction, itself
        dim, num_vectors = bottom[-1], len(rows) + 1
        pairs = num_vectors * (num_vectors + (1 if itself else -1)) // 2
        width = num_vectors * dim if interaction == "cat" else dim + pairs
        self.emb_l = nn.ModuleList(
            QuotientRemainderBag(n, dim, *qr)
            if qr is not None and n > 5
            else nn.EmbeddingBag(n, dim, mode="sum")
            for n in rows
        )
        if weighted:
            self.v_W_l = nn.ParameterList(torch.empty(n) for n in rows)
        self.bot_l = self._mlp(bottom, nn.ReLU)
        self.top_l = self._mlp([width, *top], nn.Sigmoid)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in self.named_parameters():
            if not name.startswith("v_W_l."):
                nn.init.normal_(parameter, 0, 0.5, generator=generator)
        for weights in getattr(self, "v_W_l", ()):
            nn.init.uniform_(weights, 0.5, 2, generator=generator)

    def forward(self, dense: Tensor, ids: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
        """Probabilities, shape (B,)."""
        vector = self.bot_l(dense)
        looked_up = zip(self.emb_l, ids, offsets, strict=True)
        if hasattr(self, "v_W_l"):
            pairs = zip(looked_up, self.v_W_l, strict=True)
            vectors = [vector, *(t(i, o, per_sample_weights=w[i]) for (t, i, o), w in pairs)]
        else:
            vectors = [vector, *(table(i, o) for table, i, o in looked_up)]
        if self.interaction == "cat":
            joined = torch.cat(vectors, 1)
        else:
            joined = torch.cat([vector, *self._products(vectors)], 1)
        return self.top_l(joined).squeeze(1)

    def _products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        return [
            (vectors[i] * vectors[j]).sum(1, keepdim=True)
            for i in range(len(vectors))
            for j in range(i + 1 if self.itself else i)
        ]

    @staticmethod
    def _mlp(widths: Sequence[int], last: type[nn.Module]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1], last())


def reference_file(model: nn.Module) -> dict[str, Any]:
    """What the reference's --save-model writes: numpy's numbers stand among the metrics."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "epoch": 0,
        "nepochs": 1,
        "nbatches": 64,
        "nbatches_test": 8,
        "iter": 32,
        "state_dict": model.state_dict(),
        "train_acc": np.float64(0.787),
        "train_loss": np.float32(0.451),
        "test_acc": np.float64(0.785),
        "test_loss": np.float64(0.455),
        "total_loss": np.float32(0.0),
        "total_accu": np.uint64(3),
        "opt_state_dict": optimizer.state_dict(),
    }


def save_reference(model: nn.Module, path: Path) -> Path:
    """Write such a file."""
    torch.save(reference_file(model), path)
    return path
