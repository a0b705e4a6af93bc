"""The planted teacher: the hidden rule that a generated click log obeys.

Each of the 13 dense and 26 sparse fields turns the value written in the file into an effect and a
vector of NUM_HIDDEN numbers. The logit of a click is

    bias + sum of all effects + sum over PAIRS of the dot product of the two fields' vectors

Invariants: the teacher is a function of the written values alone; its parameters depend on the seed
alone; effect and vector of each field have mean 0 and a fixed variance over the field's values, so
that every seed plants about the same signal.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts.hashing import mix

Floats = NDArray[np.float64]

GAP = np.iinfo(np.int64).min
"""Stands for an empty dense field."""
GAP_ID = -1
"""Stands for an empty sparse field."""
CLICK_RATE = 0.25
"""Share of clicks that the bias aims at."""
NUM_HIDDEN = 4
"""Length of a field's vector."""
NUM_HEAD_IDS = 4096
"""Most frequent ids of a field that have parameters of their own; all rarer ids share one set, for
no model could learn them from the few rows they are in."""
HALF_SHARE = 2e-4
"""Share of rows at which an id's parameters are shrunk by half; rarer ids are shrunk more."""


class DenseField(NamedTuple):
    """Distribution and weight of a dense field: low + floor(scale * odds ** shape), log-logistic."""

    gap: float
    """Share of empty values."""
    gap_group: int
    """Fields of one group are empty together."""
    low: int
    """Smallest value."""
    scale: float
    """Median, above low."""
    shape: float
    """Standard deviation of the logarithm, over 1.8. More: heavier tail."""
    variance: float
    """Of the effect, in squared logits."""


class SparseField(NamedTuple):
    """Distribution and weight of a sparse field: the id of rank r has odds (r + offset) ** -skew."""

    gap: float
    """Share of empty values."""
    gap_group: int
    """Fields of one group are empty together."""
    num_ids: int
    """Different ids."""
    skew: float
    """Exponent of the Zipf-Mandelbrot law, not 1. More: fewer ids make up most rows."""
    offset: float
    """Flattens the head."""
    variance: float
    """Of the effect, in squared logits."""


DENSE_FIELDS = (
    DenseField(0.20, 0, 1, 4.0, 0.90, 0.080),
    DenseField(0.00, 1, -2, 40.0, 0.90, 0.050),
    DenseField(0.23, 2, 0, 6.0, 0.70, 0.030),
    DenseField(0.26, 3, 0, 30.0, 1.00, 0.030),
    DenseField(0.41, 4, 1, 6.0, 1.00, 0.060),
    DenseField(0.07, 5, 0, 20.0, 1.00, 0.060),
    DenseField(0.02, 6, 0, 3.0, 0.80, 0.040),
    DenseField(0.00, 1, -1, 40.0, 0.70, 0.020),
    DenseField(0.00, 1, 0, 30.0, 0.80, 0.030),
    DenseField(0.07, 5, 0, 1.0, 0.50, 0.030),
    DenseField(0.41, 4, 1, 2.0, 0.60, 0.060),
    DenseField(0.01, 7, 1, 3000.0, 0.90, 0.010),
    DenseField(0.23, 2, 0, 5.0, 0.70, 0.020),
)
"""I1 .. I13. Where low is 1 a gap has an effect of its own; elsewhere it acts as a 0, which is what
a model sees that fills gaps with 0."""

SPARSE_FIELDS = (
    SparseField(0.00, 1, 1_460, 1.30, 2.0, 0.060),
    SparseField(0.00, 1, 583, 1.20, 3.0, 0.060),
    SparseField(0.04, 8, 500_000, 1.10, 1.0, 0.015),
    SparseField(0.04, 8, 200_000, 1.10, 1.0, 0.015),
    SparseField(0.00, 1, 305, 1.40, 2.0, 0.060),
    SparseField(0.12, 9, 24, 1.20, 1.0, 0.060),
    SparseField(0.00, 1, 12_517, 1.10, 3.0, 0.030),
    SparseField(0.00, 1, 633, 1.50, 2.0, 0.060),
    SparseField(0.00, 1, 3, 2.00, 1.0, 0.030),
    SparseField(0.00, 1, 93_145, 1.20, 2.0, 0.020),
    SparseField(0.00, 1, 5_683, 1.20, 3.0, 0.040),
    SparseField(0.04, 8, 500_000, 1.15, 1.0, 0.015),
    SparseField(0.00, 1, 3_194, 1.20, 3.0, 0.050),
    SparseField(0.00, 1, 27, 1.30, 1.0, 0.060),
    SparseField(0.00, 1, 14_992, 1.15, 3.0, 0.025),
    SparseField(0.04, 8, 300_000, 1.15, 1.0, 0.015),
    SparseField(0.00, 1, 10, 1.20, 1.0, 0.060),
    SparseField(0.00, 1, 5_652, 1.30, 3.0, 0.040),
    SparseField(0.44, 10, 2_173, 1.30, 2.0, 0.040),
    SparseField(0.44, 10, 4, 1.50, 1.0, 0.040),
    SparseField(0.04, 8, 400_000, 1.10, 1.0, 0.015),
    SparseField(0.76, 11, 18, 1.30, 1.0, 0.030),
    SparseField(0.00, 1, 15, 1.30, 1.0, 0.060),
    SparseField(0.04, 8, 100_000, 1.15, 2.0, 0.020),
    SparseField(0.44, 10, 105, 1.30, 1.0, 0.040),
    SparseField(0.44, 10, 60_000, 1.20, 2.0, 0.020),
)
"""C1 .. C26; numbers of ids as in Criteo's Kaggle set, the largest tables cut."""

NUM_DENSE = len(DENSE_FIELDS)
NUM_SPARSE = len(SPARSE_FIELDS)
_PAIR_NAMES = (
    ("C2", "C8"),
    ("C5", "C14"),
    ("C6", "C1"),
    ("C17", "C25"),
    ("C23", "C13"),
    ("I1", "C5"),
    ("I6", "C17"),
)
PAIR_VARIANCE = 0.07
"""Of each pair's dot product, in squared logits."""
_DENSE_STREAM, _SPARSE_STREAM, _ID_STREAM = 1, 2, 3
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_FINAL_1, _FINAL_2 = 0x85EBCA6B, 0xC2B2AE35
_UNDO_1, _UNDO_2 = (np.uint32(pow(factor, -1, 1 << 32)) for factor in (_FINAL_1, _FINAL_2))


def _field(name: str) -> int:
    return int(name[1:]) - 1 + (NUM_DENSE if name[0] == "C" else 0)


PAIRS = np.array([[_field(a), _field(b)] for a, b in _PAIR_NAMES], dtype=np.int64)
"""Interacting fields, shape (pairs, 2), counted I1 .. I13, C1 .. C26."""


class Parameters(NamedTuple):
    """What the teacher hides; the first of each 1 + NUM_HIDDEN numbers is the effect."""

    bias: float
    dense_coefficients: Floats
    """Of 1, a step and a bump, shape (NUM_DENSE, 1 + NUM_HIDDEN, 3)."""
    dense_gaps: Floats
    """In place of all three, shape (NUM_DENSE, 1 + NUM_HIDDEN)."""
    dense_centres: Floats
    """Median of log1p, shape (NUM_DENSE,)."""
    dense_spreads: Floats
    """Standard deviation of log1p, about, shape (NUM_DENSE,)."""
    tables: Floats
    """By gap, rank of the id, all rarer ids; shape (NUM_SPARSE, NUM_HEAD_IDS + 2, 1 + NUM_HIDDEN).
    """
    id_keys: NDArray[np.uint32]
    """Shape (NUM_SPARSE,)."""
    pairs: NDArray[np.int64]
    """As PAIRS."""


class Teacher:
    """The hidden rule of one seed, 0 .. 2**64 - 1."""

    def __init__(self, seed: int) -> None:
        dense = [_dense_parameters(seed, i) for i in range(NUM_DENSE)]
        tables = [_table(seed, i) for i in range(NUM_SPARSE)]
        self.parameters = Parameters(
            bias=_bias(),
            dense_coefficients=np.stack([coefficients for coefficients, _ in dense]),
            dense_gaps=np.stack([gap for _, gap in dense]),
            dense_centres=np.array([_centre(field) for field in DENSE_FIELDS]),
            dense_spreads=np.array([_spread(field) for field in DENSE_FIELDS]),
            tables=np.stack(tables),
            id_keys=np.array(
                [stream_key(seed, _ID_STREAM, i) >> 32 for i in range(NUM_SPARSE)], dtype=np.uint32
            ),
            pairs=PAIRS,
        )

    def logits(self, dense: NDArray[np.int64], ids: NDArray[np.int64]) -> Floats:
        """Logits of a click.

        Args:
            dense: Integers as written, GAP where empty, shape (B, NUM_DENSE).
            ids: Hexadecimal ids as numbers, GAP_ID where empty, shape (B, NUM_SPARSE).

        Returns:
            Shape (B,).
        """
        return _logits(self.parameters, dense, ids)


def stream_key(seed: int, *path: int) -> int:
    """Key of one of the seed's independent streams of random numbers."""
    key = mix(seed)
    for step in path:
        key = mix(key ^ step)
    return key


@njit(cache=True, nogil=True)
def random_bits(key: np.uint64, counter: np.uint64) -> np.uint64:
    """The counter-th 64 random bits of a stream: splitmix64, which can start anywhere."""
    bits = key + (counter + np.uint64(1)) * _GOLDEN
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))


@njit(cache=True, nogil=True)
def random_unit(key: np.uint64, counter: np.uint64) -> float:
    """The counter-th random number of a stream, uniform in 0 < u < 1."""
    return (float(random_bits(key, counter) >> np.uint64(12)) + 0.5) / 4503599627370496.0


@njit(cache=True, nogil=True)
def dense_value(unit: float, low: int, scale: float, shape: float) -> int:
    """The value of a dense field at a quantile: log-logistic, rounded down."""
    return low + int(scale * (unit / (1.0 - unit)) ** shape)


@njit(cache=True, nogil=True)
def sparse_rank(unit: float, num_ids: int, skew: float, offset: float) -> int:
    """The rank of a sparse field's id at a quantile, 0 the most frequent: Zipf-Mandelbrot."""
    power = 1.0 - skew
    first, last = offset**power, (offset + num_ids) ** power
    return min(int((first + unit * (last - first)) ** (1.0 / power) - offset), num_ids - 1)


@njit(cache=True, nogil=True)
def id_of_rank(rank: int, key: np.uint32) -> int:
    """The 32-bit id of a rank: a bijection, so no two ranks share an id."""
    bits = np.uint32(rank) ^ key
    bits = np.uint32(bits ^ (bits >> np.uint32(16))) * np.uint32(_FINAL_1)
    bits = np.uint32(bits)
    bits = np.uint32(np.uint32(bits ^ (bits >> np.uint32(13))) * np.uint32(_FINAL_2))
    return np.int64(bits ^ (bits >> np.uint32(16)))


@njit(cache=True, nogil=True)
def rank_of_id(identifier: int, key: np.uint32) -> int:
    """Inverse of `id_of_rank`."""
    bits = np.uint32(identifier)
    bits = np.uint32(np.uint32(bits ^ (bits >> np.uint32(16))) * _UNDO_2)
    bits = np.uint32(np.uint32(bits ^ (bits >> np.uint32(13)) ^ (bits >> np.uint32(26))) * _UNDO_1)
    return np.int64(bits ^ (bits >> np.uint32(16)) ^ key)


@njit(cache=True, nogil=True)
def _normals(key: np.uint64, count: int) -> Floats:
    """Sums of twelve uniform numbers less 6: variance 1, nearly normal, the same everywhere."""
    out = np.empty(count)
    for i in range(count):
        total = -6.0
        for j in range(12):
            total += random_unit(key, np.uint64(12 * i + j))
        out[i] = total
    return out


def _bias() -> float:
    """Logit whose click rate is CLICK_RATE, given the variance of all that is added to it.

    Source: MacKay 1992, "The evidence framework applied to classification networks", for the mean
    of a sigmoid over a normal distribution.
    """
    variance = sum(field.variance for field in (*DENSE_FIELDS, *SPARSE_FIELDS))
    variance += PAIR_VARIANCE * len(PAIRS)
    return float(np.log(CLICK_RATE / (1 - CLICK_RATE)) * np.sqrt(1 + np.pi * variance / 8))


def _scales(variance: float) -> Floats:
    """Standard deviations of a field's effect and of each number of its vector."""
    vector = (PAIR_VARIANCE / NUM_HIDDEN) ** 0.25
    return np.array([variance**0.5] + [vector] * NUM_HIDDEN)


def _centre(field: DenseField) -> float:
    return float(np.log1p(max(field.low + field.scale, 0.0)))


def _spread(field: DenseField) -> float:
    return 1.8 * field.shape


def _dense_parameters(seed: int, index: int) -> tuple[Floats, Floats]:
    """Coefficients (1 + NUM_HIDDEN, 3) and gap (1 + NUM_HIDDEN,), standardised."""
    field = DENSE_FIELDS[index]
    normals = _normals(np.uint64(stream_key(seed, _DENSE_STREAM, index)), 3 * (1 + NUM_HIDDEN))
    normals = normals.reshape(1 + NUM_HIDDEN, 3)
    units = (np.arange(4096) + 0.5) / 4096
    values = [dense_value(unit, field.low, field.scale, field.shape) for unit in units]
    shapes = np.array([_step_and_bump(value, _centre(field), _spread(field)) for value in values])
    raw = shapes @ normals[:, 1:].T
    if field.low > 0:
        gap = normals[:, 0]
    else:
        gap = np.array(_step_and_bump(0, _centre(field), _spread(field))) @ normals[:, 1:].T
    mean = (1 - field.gap) * raw.mean(axis=0) + field.gap * gap
    variance = (1 - field.gap) * ((raw - mean) ** 2).mean(axis=0) + field.gap * (gap - mean) ** 2
    factor = _scales(field.variance) / np.sqrt(variance)
    coefficients = np.column_stack([-mean, normals[:, 1:]]) * factor[:, None]
    return coefficients, (gap - mean) * factor


def _table(seed: int, index: int) -> Floats:
    """Rows of a sparse field, standardised over the ids' shares."""
    field = SPARSE_FIELDS[index]
    edges = np.minimum(np.arange(NUM_HEAD_IDS + 1), field.num_ids) + field.offset
    edges = edges ** (1 - field.skew)
    last = (field.num_ids + field.offset) ** (1 - field.skew)
    cumulative = (edges - edges[0]) / (last - edges[0])
    head = np.diff(cumulative) * (1 - field.gap)
    shares = np.concatenate([[field.gap], head, [(1 - cumulative[-1]) * (1 - field.gap)]])
    size = len(shares) * (1 + NUM_HIDDEN)
    rows = _normals(np.uint64(stream_key(seed, _SPARSE_STREAM, index)), size)
    rows = rows.reshape(len(shares), 1 + NUM_HIDDEN) * (shares / (shares + HALF_SHARE))[:, None]
    rows[-1] = 0.0
    rows -= shares @ rows
    return rows * (_scales(field.variance) / np.sqrt(shares @ rows**2))


@njit(cache=True, nogil=True)
def _step_and_bump(value: int, centre: float, spread: float) -> tuple[float, float]:
    """Two smooth functions of the logarithm of a dense value; negative values act as 0."""
    distance = (np.log1p(float(max(value, 0))) - centre) / spread
    bump = 1.0 / (1.0 + distance * distance)
    return distance * np.sqrt(bump), bump


@njit(cache=True, nogil=True)
def _dense_row(parameters: Parameters, values: NDArray[np.int64], out: Floats) -> None:
    for i in range(NUM_DENSE):
        if values[i] == GAP:
            out[i] = parameters.dense_gaps[i]
            continue
        step, bump = _step_and_bump(
            values[i], parameters.dense_centres[i], parameters.dense_spreads[i]
        )
        weights = parameters.dense_coefficients[i]
        for k in range(1 + NUM_HIDDEN):
            out[i, k] = weights[k, 0] + weights[k, 1] * step + weights[k, 2] * bump


@njit(cache=True, nogil=True)
def _sparse_row(parameters: Parameters, ids: NDArray[np.int64], out: Floats) -> None:
    for i in range(NUM_SPARSE):
        rank = GAP_ID
        if ids[i] != GAP_ID:
            rank = min(rank_of_id(ids[i], parameters.id_keys[i]), NUM_HEAD_IDS)
        out[NUM_DENSE + i] = parameters.tables[i, rank + 1]


@njit(cache=True, nogil=True)
def _logits(
    parameters: Parameters, dense: NDArray[np.int64], ids: NDArray[np.int64]
) -> Floats:
    out = np.empty(len(dense))
    fields = np.empty((NUM_DENSE + NUM_SPARSE, 1 + NUM_HIDDEN))
    for row in range(len(dense)):
        _dense_row(parameters, dense[row], fields)
        _sparse_row(parameters, ids[row], fields)
        logit = parameters.bias
        for i in range(len(fields)):
            logit += fields[i, 0]
        for p in range(len(parameters.pairs)):
            for k in range(1, 1 + NUM_HIDDEN):
                logit += fields[parameters.pairs[p, 0], k] * fields[parameters.pairs[p, 1], k]
        out[row] = logit
    return out
