"""Slow, obvious references in numpy and plain Python: the truth that fast code is held against.

Everything is float64 and one number or one id at a time. A bag is a list of row numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Bags = Sequence[Sequence[int]]
BagWeights = Sequence[Sequence[float]]


def pooled_lookup(
    table: Array, bags: Bags, weights: BagWeights | None = None, pooling: str = "sum"
) -> Array:
    """One vector a bag: the (weighted) sum of its rows, for "mean" over its number of ids."""
    out = np.zeros((len(bags), table.shape[1]))
    for b, bag in enumerate(bags):
        for k, row in enumerate(bag):
            out[b] += table[row] * (1.0 if weights is None else weights[b][k])
        if pooling == "mean" and bag:
            out[b] /= len(bag)
    return out


def row_gradient(
    grad_pooled: Array, bags: Bags, weights: BagWeights | None = None, pooling: str = "sum"
) -> dict[int, Array]:
    """The gradient of each row that a bag reads."""
    grads: dict[int, Array] = {}
    for b, bag in enumerate(bags):
        for k, row in enumerate(bag):
            share = 1.0 if weights is None else weights[b][k]
            if pooling == "mean":
                share /= len(bag)
            grads[row] = grads.get(row, np.zeros(grad_pooled.shape[1])) + share * grad_pooled[b]
    return grads


def dot_interaction(dense: Array | None, pooled: Array, include_diagonal: bool = False) -> Array:
    """Dense vector, then <e_i, e_j> for i > j (i >= j): (1,0), (2,0), (2,1), ..."""
    out = []
    for b in range(len(pooled)):
        vectors = list(pooled[b]) if dense is None else [dense[b], *pooled[b]]
        row = [] if dense is None else list(dense[b])
        for i in range(len(vectors)):
            for j in range(i + 1 if include_diagonal else i):
                row.append(sum(x * y for x, y in zip(vectors[i], vectors[j], strict=True)))
        out.append(row)
    return np.array(out)


def cat_interaction(dense: Array | None, pooled: Array) -> Array:
    """Dense vector, then the features' vectors."""
    return np.array(
        [
            np.concatenate(list(pooled[b]) if dense is None else [dense[b], *pooled[b]])
            for b in range(len(pooled))
        ]
    )


def mlp(x: Array, layers: Sequence[tuple[Array, Array]], relu_last: bool) -> Array:
    """Weight (out, in) and bias a layer; ReLU between layers, and after the last if asked."""
    for k, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        if relu_last or k < len(layers) - 1:
            x = np.maximum(x, 0)
    return x


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-x))


def bce(logits: Sequence[float], labels: Sequence[float]) -> list[float]:
    """-log of the probability given to the label, a sample."""
    return [
        -math.log(sigmoid(x)) if y == 1 else -math.log(1 - sigmoid(x))
        for x, y in zip(logits, labels, strict=True)
    ]


def different_rows(num_rows: int, num_ids: int, repeats: int) -> float:
    """Mean number of different rows among ids drawn evenly."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(num_rows, size=(repeats, num_ids))
    return float(np.mean([len(np.unique(ids)) for ids in drawn]))
