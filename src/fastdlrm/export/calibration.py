"""Logits -> the probabilities that are served, and the fit of what lies between.

Shapes: n samples.
"""

import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.exported import Calibration, CalibrationKind
from fastdlrm.errors import ExportError
from fastdlrm.metrics.logistic import logistic

Numbers = NDArray[np.float64]
MAX_STEPS = 100
MAX_KNOTS = 1000
"""Most knots that are kept of an isotonic fit; more would only follow the noise."""


def fit_calibration(
    kind: CalibrationKind, logits: Numbers, labels: Numbers, negative_rate: float = 1.0
) -> Calibration:
    """Fit on samples that the model was not trained on.

    Args:
        kind: What to fit.
        logits: Of the model, shape (n,).
        labels: 0 or 1, shape (n,).
        negative_rate: Share of the negatives that training saw; corrected before the fit.

    Raises:
        ExportError: Only one class is there, or the rate is not in (0, 1].
    """
    if not 0 < negative_rate <= 1:
        raise ExportError(f"negative rate {negative_rate}: above 0 and at most 1 is allowed")
    if kind == "none":
        return Calibration(negative_rate=negative_rate)
    if not 0 < labels.sum() < len(labels):
        raise ExportError(
            f"calibration {kind!r}: the validation split's {len(labels)} rows are of one class; "
            "export without calibration, or prepare with a larger validation split"
        )
    if not np.isfinite(logits).all():
        raise ExportError(
            f"calibration {kind!r}: a logit of the validation split is not finite; export another "
            "checkpoint, or train with a lower learning rate"
        )
    logits = logits + np.log(negative_rate)
    if kind == "platt":
        slope, intercept = fit_platt(logits, labels)
        return Calibration(kind=kind, slope=slope, intercept=intercept, negative_rate=negative_rate)
    knots, values = fit_isotonic(logits, labels)
    # no number of samples shows that something never, or always, happens
    values = values.clip(1 / (len(labels) + 2), 1 - 1 / (len(labels) + 2))
    return Calibration(
        kind=kind,
        knot_logits=tuple(knots.tolist()),
        knot_probabilities=tuple(values.tolist()),
        negative_rate=negative_rate,
    )


def probabilities(calibration: Calibration, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is served; each sample's depends on its own logit alone.

    p / (p + (1 - p) / w) of a logistic p is the logistic function of logit + log(w).

    Args:
        calibration: Fitted.
        logits: Shape (n,).

    Returns:
        Shape (n,).
    """
    return logistic(served_logits(calibration, logits)).astype(np.float32)


def served_logits(calibration: Calibration, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logits of `probabilities`, whose tails float32 probabilities would round away.

    Args:
        calibration: Fitted.
        logits: Of the model, shape (n,).

    Returns:
        Shape (n,).
    """
    moved = logits.astype(np.float64) + np.log(calibration.negative_rate)
    if calibration.kind == "isotonic":
        p = np.interp(moved, calibration.knot_logits, calibration.knot_probabilities)
        return np.log(p) - np.log1p(-p)
    return calibration.slope * moved + calibration.intercept


def fit_platt(logits: Numbers, labels: Numbers) -> tuple[float, float]:
    """Slope and intercept of least log loss, by Newton's method with step halving.

    Targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2) in place of 1 and 0, against overfitting.

    Args:
        logits: Shape (n,).
        labels: 0 or 1, shape (n,), both there.

    Source: Platt 1999; Lin, Lin, Weng 2007, A note on Platt's probabilistic outputs.
    """
    positives = labels.sum()
    high, low = (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2)
    targets = np.where(labels > 0, high, low)
    x = np.stack([logits, np.ones_like(logits)])
    line = np.array([1.0, 0.0])
    loss = _log_loss(line @ x, targets)
    for _ in range(MAX_STEPS):
        p = logistic(line @ x)
        gradient = x @ (p - targets)
        if np.abs(gradient).max() < 1e-7 * len(labels):
            break
        hessian = (x * (p * (1 - p))) @ x.T + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-10:
            moved = line - size * step
            if (found := _log_loss(moved @ x, targets)) < loss:
                line, loss = moved, found
                break
            size /= 2
        else:
            break
    return float(line[0]), float(line[1])


def fit_isotonic(logits: Numbers, labels: Numbers) -> tuple[Numbers, Numbers]:
    """The rising function of least squares, by pooling adjacent violators, as knots.

    A pool of equal values becomes a knot at each of its ends; between pools it is interpolated.

    Args:
        logits: Shape (n,).
        labels: 0 or 1, shape (n,).

    Returns:
        Logits, ascending, and probabilities at them, ascending; at least one.

    Source: Zadrozny, Elkan 2002; Barlow et al. 1972.
    """
    places, inverse = np.unique(logits, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, weights=labels) / weights
    values, firsts, sizes = _pools(means, weights)
    lasts = np.append(firsts[1:], len(means)) - 1
    if len(values) > MAX_KNOTS // 2:
        values, firsts, lasts = _merged(values, firsts, lasts, sizes)
    knots = np.stack([places[firsts], places[lasts]], 1).reshape(-1)
    at = np.repeat(values, 2)
    kept = np.append(True, np.diff(knots) > 0)
    return knots[kept], at[kept]


def _pools(means: Numbers, weights: Numbers) -> tuple[Numbers, NDArray[np.int64], Numbers]:
    """Values, first members and weights of the pools."""
    values: list[float] = []
    sizes: list[float] = []
    firsts: list[int] = []
    for place, (mean, weight) in enumerate(zip(means.tolist(), weights.tolist(), strict=True)):
        first = place
        while values and values[-1] >= mean:
            total = sizes[-1] + weight
            mean = (values.pop() * sizes[-1] + mean * weight) / total
            weight, first = total, firsts.pop()
            sizes.pop()
        values.append(mean)
        sizes.append(weight)
        firsts.append(first)
    return np.array(values), np.array(firsts), np.array(sizes)


def _merged(
    values: Numbers, firsts: NDArray[np.int64], lasts: NDArray[np.int64], sizes: Numbers
) -> tuple[Numbers, NDArray[np.int64], NDArray[np.int64]]:
    """Neighbouring pools joined into about equally many samples each."""
    shares = np.cumsum(sizes) - sizes / 2
    group = (shares / sizes.sum() * (MAX_KNOTS // 2)).astype(np.int64)
    starts = np.flatnonzero(np.append(True, np.diff(group) > 0))
    totals = np.add.reduceat(sizes, starts)
    ends = np.append(starts[1:], len(values)) - 1
    return np.add.reduceat(values * sizes, starts) / totals, firsts[starts], lasts[ends]


def _log_loss(z: Numbers, targets: Numbers) -> float:
    return float(np.sum(np.logaddexp(0.0, z) - targets * z))
