"""What an engineer writes first: raw columns -> Python dicts -> plain eager PyTorch -> scores.

One dict a vocabulary, list comprehensions, one nn.EmbeddingBag a table, `torch.no_grad`. The
weights are those of a run; the scores are its `predict`'s up to rounding, so that servers built on
this can be compared with ours on the same model.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdlrm.contracts.schema import FIRST_ID, MISSING, OUT_OF_VOCABULARY
from fastdlrm.data.vocabulary import read_keys
from fastdlrm.train.run import Run

Columns = Mapping[str, Sequence[Any]]
"""Raw values by column: numbers or text; None or "" where missing."""


class PlainScorer:
    """A run's model and encoding, for logs of single hexadecimal ids and log1p numbers.

    Args:
        folder: The run.
    """

    def __init__(self, folder: Path) -> None:
        run = Run.open(folder)
        schema, encoding = run.manifest.schema, run.manifest.encoding
        self.dense, self.sparse = schema.dense, schema.sparse
        if any(f.transform != "log1p" for f in self.dense) or any(
            f.key != "hex" or f.bag for f in self.sparse
        ):
            raise SystemExit(f"{folder}: made for single hex ids and log1p numbers")
        self.columns = [f.column for f in (*self.dense, *self.sparse)]
        self.vocabularies = [
            {
                key: row
                for row, key in enumerate(
                    read_keys(folder, encoding.tables[f.table]).tolist(), start=FIRST_ID
                )
            }
            for f in self.sparse
        ]
        model = run.load_model()
        self.bottom, self.top = model.bottom_mlp, model.top_mlp
        self.tables = [
            nn.EmbeddingBag.from_pretrained(model.tables.table(f.table).clone(), mode="sum")
            for f in self.sparse
        ]
        vectors = len(self.sparse) + 1
        self.i, self.j = torch.tril_indices(vectors, vectors, -1)

    def score(self, columns: Columns) -> list[float]:
        """Probabilities of the rows of a request."""
        dense = torch.tensor(
            [
                [
                    0.0 if _is_missing(v) else math.log1p(max(float(v), 0.0))
                    for v in columns[f.column]
                ]
                for f in self.dense
            ]
        ).T
        ids = [
            torch.tensor(
                [
                    MISSING if _is_missing(v) else vocabulary.get(int(v, 16), OUT_OF_VOCABULARY)
                    for v in columns[f.column]
                ]
            )
            for f, vocabulary in zip(self.sparse, self.vocabularies, strict=True)
        ]
        return self.forward(dense, ids).tolist()

    @torch.no_grad()
    def forward(self, dense: Tensor, ids: Sequence[Tensor]) -> Tensor:
        """Probabilities of encoded rows, shape (B,)."""
        x = self.bottom(dense)
        offsets = torch.arange(len(dense))
        pooled = [table(index, offsets) for table, index in zip(self.tables, ids, strict=True)]
        vectors = torch.stack([x, *pooled], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        joined = torch.cat([x, products[:, self.i, self.j]], 1)
        return torch.sigmoid(self.top(joined).squeeze(1))


def _log1p(number: float) -> float:
    return math.log1p(max(number, 0.0))


def _is_missing(value: Any) -> bool:
    return value is None or value == ""
