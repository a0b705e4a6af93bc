"""The planted teacher: the hidden rule that a generated click log obeys.

Each of the 13 dense and 26 sparse fields turns the value written in the file into an effect and a
hidden vector. The logit of a click is

    bias + sum of the effects of all fields + sum of <v_i, v_j> over all pairs of INTERACTING fields

Invariants: the teacher is a function of the written values alone; its parameters are a function of
the seed alone; effect and vector of a field have mean 0 and a fixed variance over the field's
values, so that every seed plants about the same signal.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.data import keys

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GAP = np.iinfo(np.int64).min
"""Stands for an empty dense field."""
GAP_ID = -1
"""Stands for an empty sparse field."""
CLICK_RATE = 0.25
"""Share of clicks that the bias aims at."""
NUM_HEAD_IDS = 256
"""Most frequent ids of a field, the ones with parameters of their own. All rarer ids share one set:
no model could learn them from the few rows they are in."""
HALF_SHARE = 2e-4
"""Share of rows at which an id's parameters are shrunk by half; rarer ids' are shrunk more."""
NUM_HIDDEN = 2
"""Length of a hidden vector."""
PAIR_VARIANCE = 0.0133
"""Of each dot product of two fields, in squared logits."""
LEANING = 0.97
"""Correlation of a vector's numbers with the effect. A field that raises clicks by itself also
raises the weight of others; without that, a model whose vectors start near 0 finds the dot products
only after many epochs."""


class DenseField(NamedTuple):
    """Distribution and weight of an integer: low + floor(scale * odds ** shape), log-logistic."""

    gap: float
    """Share of empty values."""
    gap_group: int
    """Fields of one group are empty together."""
    low: int
    """Smallest value."""
    scale: float
    """Median, above low."""
    shape: float
    """Over 0.55, the standard deviation of the logarithm. More: heavier tail."""
    variance: float
    """Of the effect, in squared logits."""


class SparseField(NamedTuple):
    """Distribution and weight of an id: a Zipf head of NUM_HEAD_IDS ids and a flat tail."""

    gap: float
    """Share of empty values."""
    gap_group: int
    """Fields of one group are empty together."""
    num_ids: int
    """Different ids."""
    tail: float
    """Share of the tail, whose ids are equally frequent; 0 where the head holds all ids."""
    skew: float
    """Zipf exponent of the head, above 1. More: fewer ids make up most rows."""
    variance: float
    """Of the effect, in squared logits."""


DENSE_FIELDS = (
    DenseField(0.20, 1, 1, 4.0, 0.90, 0.10),
    DenseField(0.00, 0, -2, 40.0, 0.90, 0.03),
    DenseField(0.23, 2, 0, 6.0, 0.70, 0.02),
    DenseField(0.26, 3, 0, 30.0, 0.90, 0.02),
    DenseField(0.41, 4, 1, 6.0, 0.90, 0.10),
    DenseField(0.07, 5, 0, 20.0, 0.90, 0.12),
    DenseField(0.02, 6, 0, 3.0, 0.70, 0.06),
    DenseField(0.00, 0, -1, 40.0, 0.70, 0.01),
    DenseField(0.00, 0, 0, 30.0, 0.70, 0.01),
    DenseField(0.07, 5, 0, 1.0, 0.50, 0.06),
    DenseField(0.41, 4, 1, 2.0, 0.60, 0.06),
    DenseField(0.01, 7, 1, 3000.0, 0.80, 0.01),
    DenseField(0.23, 2, 0, 5.0, 0.70, 0.01),
)
"""I1 .. I13. Where low is 1 a gap has an effect of its own; elsewhere it acts as a 0, which is all
that a model sees that fills gaps with 0."""

SPARSE_FIELDS = (
    SparseField(0.00, 0, 1_460, 0.002, 1.3, 0.08),
    SparseField(0.00, 0, 583, 0.002, 1.3, 0.10),
    SparseField(0.04, 8, 10_131_227, 0.200, 1.8, 0.01),
    SparseField(0.04, 8, 2_202_608, 0.150, 1.8, 0.01),
    SparseField(0.00, 0, 305, 0.002, 1.2, 0.16),
    SparseField(0.12, 9, 24, 0.000, 1.2, 0.14),
    SparseField(0.00, 0, 12_517, 0.002, 1.7, 0.01),
    SparseField(0.00, 0, 633, 0.002, 1.3, 0.10),
    SparseField(0.00, 0, 3, 0.000, 1.6, 0.06),
    SparseField(0.00, 0, 93_145, 0.100, 1.7, 0.01),
    SparseField(0.00, 0, 5_683, 0.002, 1.5, 0.03),
    SparseField(0.04, 8, 8_351_593, 0.200, 1.8, 0.01),
    SparseField(0.00, 0, 3_194, 0.002, 1.5, 0.03),
    SparseField(0.00, 0, 27, 0.000, 1.2, 0.16),
    SparseField(0.00, 0, 14_992, 0.050, 1.7, 0.01),
    SparseField(0.04, 8, 5_461_306, 0.200, 1.8, 0.01),
    SparseField(0.00, 0, 10, 0.000, 1.2, 0.14),
    SparseField(0.00, 0, 5_652, 0.002, 1.7, 0.01),
    SparseField(0.44, 10, 2_173, 0.002, 1.6, 0.01),
    SparseField(0.44, 10, 4, 0.000, 1.4, 0.08),
    SparseField(0.04, 8, 7_046_547, 0.200, 1.8, 0.01),
    SparseField(0.76, 11, 18, 0.000, 1.2, 0.01),
    SparseField(0.00, 0, 15, 0.000, 1.2, 0.14),
    SparseField(0.04, 8, 286_181, 0.030, 1.7, 0.01),
    SparseField(0.44, 10, 105, 0.000, 1.2, 0.05),
    SparseField(0.44, 10, 142_572, 0.030, 1.7, 0.01),
)
"""C1 .. C26; numbers of ids as in Criteo's Kaggle set."""

NUM_DENSE = len(DENSE_FIELDS)
NUM_SPARSE = len(SPARSE_FIELDS)
NUM_GAP_GROUPS = 1 + max(field.gap_group for field in (*DENSE_FIELDS, *SPARSE_FIELDS))
_INTERACTING_DENSE = (1,)
_INTERACTING_SPARSE = (5, 6, 14, 17, 23)
INTERACTING = np.array(
    [i - 1 for i in _INTERACTING_DENSE] + [NUM_DENSE + i - 1 for i in _INTERACTING_SPARSE]
)
"""I1, C5, C6, C14, C17, C23, counted in the order I1 .. I13, C1 .. C26."""

_CURVE_SPREADS = np.array([0.3, 1.0, 0.3])
"""Standard deviations of the weights of a dense field's gap, step and bump, before they are scaled
to the field's variance; the step's gets a 1 of its own sign added, for clicks mostly rise or fall
all the way."""
_NUM_QUANTILES = 4096
_MAX_VALUE = 2**31 - 1
_FACTOR_1, _FACTOR_2 = 0x85EBCA6B, 0xC2B2AE35
"""Of murmur3's 32-bit finaliser, a bijection."""
_INVERSE_1 = pow(_FACTOR_1, -1, 1 << 32)
_INVERSE_2 = pow(_FACTOR_2, -1, 1 << 32)
_MASK = 0xFFFFFFFF


class Parameters(NamedTuple):
    """What the teacher hides; the first of each 1 + NUM_HIDDEN numbers is the effect."""

    bias: float
    curves: Floats
    """Weights of 1, step and bump of a dense value, shape (NUM_DENSE, 1 + NUM_HIDDEN, 3)."""
    gaps: Floats
    """Of an empty dense field, shape (NUM_DENSE, 1 + NUM_HIDDEN)."""
    centres: Floats
    """Median of log1p of the dense values, shape (NUM_DENSE,)."""
    spreads: Floats
    """Standard deviation of the same, about, shape (NUM_DENSE,)."""
    tables: Floats
    """Of a gap, of each head id by rank, of any tail id: shape (NUM_SPARSE, NUM_HEAD_IDS + 2,
    1 + NUM_HIDDEN)."""
    id_keys: Ints
    """Turn ranks into ids, shape (NUM_SPARSE,)."""
    interacting: Ints
    """As INTERACTING."""


class Teacher:
    """The hidden rule of one seed, 0 .. 2**64 - 1."""

    def __init__(self, seed: int) -> None:
        curves, gaps = zip(*(_curve(seed, i) for i in range(NUM_DENSE)), strict=True)
        id_keys = [int(keys.stream(seed, f"ids C{i + 1}")) & _MASK for i in range(NUM_SPARSE)]
        self.parameters = Parameters(
            bias=_bias(),
            curves=np.stack(curves),
            gaps=np.stack(gaps),
            centres=np.array([_centre(field) for field in DENSE_FIELDS]),
            spreads=np.array([_spread(field) for field in DENSE_FIELDS]),
            tables=np.stack([_table(seed, i) for i in range(NUM_SPARSE)]),
            id_keys=np.array(id_keys, dtype=np.int64),
            interacting=INTERACTING,
        )

    def logits(self, dense: Ints, ids: Ints) -> Floats:
        """Logits of a click.

        Args:
            dense: Integers as written, GAP where empty, shape (B, NUM_DENSE).
            ids: Hexadecimal ids as numbers, GAP_ID where empty, shape (B, NUM_SPARSE).

        Returns:
            Shape (B,).
        """
        return _logits(self.parameters, dense, ids)


@njit(cache=True, nogil=True)
def dense_value(unit: float, low: int, scale: float, shape: float) -> int:
    """The integer at a quantile of a `DenseField`."""
    return low + int(min(scale * (unit / (1.0 - unit)) ** shape, float(_MAX_VALUE - low)))


@njit(cache=True, nogil=True)
def sparse_rank(unit: float, num_ids: int, tail: float, skew: float) -> int:
    """The rank, 0 the most frequent, of the id at a quantile of a `SparseField`."""
    num_head = min(num_ids, NUM_HEAD_IDS)
    if unit < tail:
        return min(num_head + int(unit / tail * (num_ids - num_head)), num_ids - 1)
    power = 1.0 - skew
    share = (unit - tail) / (1.0 - tail) * (1.0 - (1.0 + num_head) ** power)
    return min(int((1.0 - share) ** (1.0 / power)) - 1, num_head - 1)


@njit(cache=True, nogil=True)
def id_of_rank(rank: int, key: int) -> int:
    """The 32-bit id of a rank; no two ranks share one."""
    bits = rank ^ key
    bits = ((bits ^ (bits >> 16)) * _FACTOR_1) & _MASK
    bits = ((bits ^ (bits >> 13)) * _FACTOR_2) & _MASK
    return bits ^ (bits >> 16)


@njit(cache=True, nogil=True)
def rank_of_id(identifier: int, key: int) -> int:
    """Inverse of `id_of_rank`."""
    bits = identifier ^ (identifier >> 16)
    bits = (bits * _INVERSE_2) & _MASK
    bits = ((bits ^ (bits >> 13) ^ (bits >> 26)) * _INVERSE_1) & _MASK
    return bits ^ (bits >> 16) ^ key


def _bias() -> float:
    """The logit that gives CLICK_RATE, given the variance of all that is added to it.

    Source: MacKay 1992, "The evidence framework applied to classification networks", for the mean
    of a sigmoid over a normal distribution.
    """
    variance = sum(field.variance for field in (*DENSE_FIELDS, *SPARSE_FIELDS))
    variance += PAIR_VARIANCE * len(INTERACTING) * (len(INTERACTING) - 1) / 2
    return float(np.log(CLICK_RATE / (1 - CLICK_RATE)) * np.sqrt(1 + np.pi * variance / 8))


def _normals(seed: int, purpose: str, num_rows: int) -> Floats:
    """Rows of effect and vector: sums of 12 uniform numbers less 6, which is nearly normal."""
    shape = (num_rows, 1 + NUM_HIDDEN, 12)
    normals = keys.uniforms(keys.stream(seed, purpose), 0, int(np.prod(shape)))
    normals = normals.reshape(shape).sum(axis=2) - 6.0
    normals[:, 1:] = LEANING * normals[:, :1] + np.sqrt(1 - LEANING**2) * normals[:, 1:]
    return normals


def _standard(rows: Floats, shares: Floats, variance: float) -> tuple[Floats, Floats]:
    """Mean of the rows, and the factors that give effect and vector their variance."""
    vector = np.sqrt(PAIR_VARIANCE / NUM_HIDDEN)
    mean = shares @ rows
    wanted = np.array([variance] + [vector] * NUM_HIDDEN)
    return mean, np.sqrt(wanted / (shares @ (rows - mean) ** 2))


def _table(seed: int, index: int) -> Floats:
    """Rows of a sparse field, see `Parameters.tables`."""
    field = SPARSE_FIELDS[index]
    num_head = min(field.num_ids, NUM_HEAD_IDS)
    edges = (1.0 + np.minimum(np.arange(NUM_HEAD_IDS + 1), num_head)) ** (1 - field.skew)
    head = np.diff(edges) / (edges[-1] - edges[0])
    shares = np.concatenate([[field.gap], (1 - field.gap) * (1 - field.tail) * head, [0.0]])
    shares[-1] = (1 - field.gap) * field.tail
    rows = _normals(seed, f"teacher C{index + 1}", len(shares))
    rows *= (shares / (shares + HALF_SHARE))[:, None]
    rows[-1] = 0.0
    mean, factors = _standard(rows, shares, field.variance)
    return (rows - mean) * factors


def _centre(field: DenseField) -> float:
    return float(np.log1p(max(field.low + field.scale, 0.0)))


def _spread(field: DenseField) -> float:
    return field.shape / 0.55


def _curve(seed: int, index: int) -> tuple[Floats, Floats]:
    """Curves and gap of a dense field, see `Parameters`."""
    field = DENSE_FIELDS[index]
    weights = _normals(seed, f"teacher I{index + 1}", 3) * _CURVE_SPREADS[:, None]
    weights[1] += np.copysign(1.0, weights[1, 0])
    units = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    values = [dense_value(unit, field.low, field.scale, field.shape) for unit in units]
    curves = np.array([_step_and_bump(v, _centre(field), _spread(field)) for v in (0, *values)])
    rows = curves @ weights[1:]
    if field.low > 0:
        rows[0] = weights[0]
    shares = np.full(len(rows), (1 - field.gap) / _NUM_QUANTILES)
    shares[0] = field.gap
    mean, factors = _standard(rows, shares, field.variance)
    curve = np.column_stack([-mean, weights[1], weights[2]]) * factors[:, None]
    return curve, (rows[0] - mean) * factors


@njit(cache=True, nogil=True)
def _step_and_bump(value: int, centre: float, spread: float) -> tuple[float, float]:
    """Two smooth functions of the logarithm of a dense value; negative values act as 0."""
    distance = (np.log1p(float(max(value, 0))) - centre) / spread
    bump = 1.0 / (1.0 + distance * distance)
    return distance * np.sqrt(bump), bump


@njit(cache=True, nogil=True)
def _look_up(parameters: Parameters, dense: Ints, ids: Ints, out: Floats) -> None:
    """Effects and vectors of one row's fields."""
    for i in range(NUM_DENSE):
        if dense[i] == GAP:
            out[i] = parameters.gaps[i]
        else:
            step, bump = _step_and_bump(dense[i], parameters.centres[i], parameters.spreads[i])
            for k in range(1 + NUM_HIDDEN):
                curve = parameters.curves[i, k]
                out[i, k] = curve[0] + curve[1] * step + curve[2] * bump
    for i in range(NUM_SPARSE):
        rank = GAP_ID
        if ids[i] != GAP_ID:
            rank = min(rank_of_id(ids[i], parameters.id_keys[i]), NUM_HEAD_IDS)
        out[NUM_DENSE + i] = parameters.tables[i, rank + 1]


@njit(cache=True, nogil=True)
def _logits(parameters: Parameters, dense: Ints, ids: Ints) -> Floats:
    out = np.empty(len(dense))
    fields = np.empty((NUM_DENSE + NUM_SPARSE, 1 + NUM_HIDDEN))
    for row in range(len(dense)):
        _look_up(parameters, dense[row], ids[row], fields)
        logit = parameters.bias
        for i in range(len(fields)):
            logit += fields[i, 0]
        for k in range(1, 1 + NUM_HIDDEN):
            # Dot products of all pairs: half of the square of the sum less the sum of squares.
            total = squares = 0.0
            for i in parameters.interacting:
                total += fields[i, k]
                squares += fields[i, k] ** 2
            logit += (total * total - squares) / 2
        out[row] = logit
    return out
