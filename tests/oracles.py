"""Slow, obvious references in numpy and plain Python: the truth that fast code is held against.

Everything is float64 and one number or one id at a time. A bag is a list of row numbers.
`criteo_reference` is the DLRM reference's preprocessing of Criteo's logs.
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


def cross_network(x: Array, layers: Sequence[tuple[Array, Array, Array]]) -> Array:
    """V (rank, W), U (W, rank) and b (W,) a layer; number by number as DCN-v2's equation 2."""
    out = []
    for start in x:
        row = list(start)
        for v, u, bias in layers:
            narrow = [sum(a * b for a, b in zip(of_v, row, strict=True)) for of_v in v]
            wide = [sum(a * b for a, b in zip(of_u, narrow, strict=True)) for of_u in u]
            row = [x0 * (y + b) + x_l for x0, y, b, x_l in zip(start, wide, bias, row, strict=True)]
        out.append(row)
    return np.array(out)


def cross_vector_network(x: Array, layers: Sequence[tuple[Array, Array]]) -> Array:
    """w (W,) and b (W,) a layer; x_{l+1} = x_0 (x_l . w) + b + x_l, as DCN's equation 3."""
    out = []
    for start in x:
        row = list(start)
        for weight, bias in layers:
            product = sum(a * b for a, b in zip(row, weight, strict=True))
            row = [x0 * product + b + x_l for x0, b, x_l in zip(start, bias, row, strict=True)]
        out.append(row)
    return np.array(out)


def factorization(dense: Array | None, pooled: Array) -> Array:
    """The sum of the vectors' first numbers, and of the products of the others, pair by pair."""
    out = []
    for b in range(len(pooled)):
        vectors = list(pooled[b]) if dense is None else [dense[b], *pooled[b]]
        total = sum(vector[0] for vector in vectors)
        for i in range(len(vectors)):
            for j in range(i):
                total += sum(x * y for x, y in zip(vectors[i][1:], vectors[j][1:], strict=True))
        out.append([total])
    return np.array(out)


def projection(dense: Array | None, first: Array, second: Array, dim: int) -> Array:
    """Dense vector, then row i of the first times column j of the second: (0,0), (0,1), ..."""
    out = []
    for b in range(len(first)):
        rows = first[b].reshape(-1, dim)
        columns = second[b].reshape(dim, -1)
        row = [] if dense is None else list(dense[b])
        for i in range(len(rows)):
            for j in range(columns.shape[1]):
                row.append(sum(rows[i, d] * columns[d, j] for d in range(dim)))
        out.append(row)
    return np.array(out)


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


CriteoRow = tuple[int, list[float], list[int]]
"""Label, 13 dense numbers and 26 rows of tables."""


def criteo_reference(
    days: Sequence[Sequence[str]], max_ind_range: int = 0
) -> tuple[list[list[CriteoRow]], list[int]]:
    """Criteo's lines as the reference hands them to its model.

    An empty field is 0. Ids are hexadecimal, modulo max_ind_range where it is above 0; each feature
    numbers the values of all days, the last one too, in the order of first sight. Dense numbers
    below 0 are 0, and log(x + 1) is taken. Ids are taken modulo max_ind_range once more.

    Returns:
        The rows of each day, and the rows of each table.
    """
    numbers: list[dict[int, int]] = [{} for _ in range(26)]
    out = []
    for day in days:
        rows = []
        for line in day:
            fields = [field or "0" for field in line.rstrip("\n").split("\t")]
            ids = [int(field, 16) for field in fields[14:40]]
            if max_ind_range > 0:
                ids = [value % max_ind_range for value in ids]
            rank = [known.setdefault(v, len(known)) for known, v in zip(numbers, ids, strict=True)]
            if max_ind_range > 0:
                rank = [value % max_ind_range for value in rank]
            dense = [math.log(max(int(field), 0) + 1) for field in fields[1:14]]
            rows.append((int(fields[0]), dense, rank))
        out.append(rows)
    return out, [len(known) for known in numbers]


def different_rows(num_rows: int, num_ids: int, repeats: int) -> float:
    """Mean number of different rows among ids drawn evenly."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(num_rows, size=(repeats, num_ids))
    return float(np.mean([len(np.unique(ids)) for ids in drawn]))
