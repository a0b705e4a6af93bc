"""A queue with one server and a fixed service time, by formula and query by query."""

from decimal import Decimal, localcontext

import numpy as np


def md1_waits_at_most(rate, service_s, wait_s):
    """P[wait <= t] of an M/D/1 queue (Crommelin 1932):
    (1 - rho) sum over k of (rate (kD - t))^k / k! * exp(-rate (kD - t)), k = 0..floor(t / D).
    The terms cancel nearly: they are summed with 80 digits."""
    with localcontext() as context:
        context.prec = 80
        lam, service, wait = Decimal(rate), Decimal(service_s), Decimal(wait_s)
        total, factorial = Decimal(0), Decimal(1)
        for k in range(int(wait / service) + 1):
            factorial *= max(k, 1)
            x = lam * (k * service - wait)
            power = Decimal(1) if k == 0 else x**k
            total += power / factorial * (-x).exp()
        return float((1 - lam * service) * total)


def md1_latency(rate, service_s, level):
    """Percentile of wait and service together."""
    low, high = 0.0, 200 * service_s
    for _ in range(60):
        middle = (low + high) / 2
        if md1_waits_at_most(rate, service_s, middle) < level / 100:
            low = middle
        else:
            high = middle
    return high + service_s


def md1_rate(service_s, sla_s, level):
    """Rate at which a percentile of latency equals the SLA."""
    low, high = 1e-3 / service_s, 0.999 / service_s
    for _ in range(60):
        middle = (low + high) / 2
        if md1_waits_at_most(middle, service_s, sla_s - service_s) > level / 100:
            low = middle
        else:
            high = middle
    return low


def fifo_done(times_s, service_s):
    """When each query is done, one after the other: max(its arrival, the last one's end) + D.

    In one formula: end(n) = max over k <= n of arrival(k) + (n - k + 1) D.
    """
    places = np.arange(len(times_s)) * service_s
    return np.maximum.accumulate(times_s - places) + places + service_s
