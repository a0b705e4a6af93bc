"""When queries arrive: the whole schedule, from a seed, before the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastdlrm.errors import ConfigError

ArrivalLaw = Literal["exponential", "uniform", "reference_poisson_ms", "trace"]
"""exponential: a Poisson process, gaps drawn from the exponential distribution;
uniform: equal gaps;
reference_poisson_ms: gaps of whole milliseconds drawn from the Poisson distribution, as the
DeepRecSys repository does (their coefficient of variation is 1 / sqrt(mean gap in ms), that of a
Poisson process is 1): to reproduce it, and for nothing else;
trace: the times of a file."""

Times = NDArray[np.float64]
Draw = Callable[[int], Times]


def arrival_times(law: ArrivalLaw, rate: float, duration_s: float, seed: int) -> Times:
    """Draw a schedule.

    Args:
        law: Any but "trace".
        rate: Queries a second on average.
        duration_s: Length of the schedule.
        seed: The same seed gives the same schedule.

    Returns:
        Seconds from the start, ascending, all below `duration_s`.

    Raises:
        ConfigError: Rate or duration is not positive, or the law cannot have this rate.
    """
    if not (rate > 0 and duration_s > 0):
        raise ConfigError(f"rate {rate:g}/s for {duration_s:g} s; both must be above 0")
    if law == "uniform":
        return np.arange(int(np.ceil(rate * duration_s))) / rate
    random = np.random.default_rng(seed)
    if law == "reference_poisson_ms":
        mean_ms = 1000 / rate
        if mean_ms < 1:
            raise ConfigError(
                f"rate {rate:g}/s with arrivals reference_poisson_ms: gaps of whole milliseconds "
                "reach 1000/s; use exponential"
            )
        return _until(
            duration_s, rate, lambda count: random.poisson(mean_ms, count).astype(np.float64) / 1000
        )
    if law == "exponential":
        return _until(duration_s, rate, lambda count: random.exponential(1 / rate, count))
    raise ConfigError(f"arrivals {law!r}: the times of a trace are read, not drawn")


def read_trace(path: Path, rate: float | None = None) -> tuple[Times, NDArray[np.int64] | None]:
    """Read a trace: on each line a time in seconds and, where it has one, the query's size.

    Args:
        path: Text; lines that start with "#" are left out.
        rate: Queries a second to stretch the trace to; None = as it is.

    Returns:
        Seconds from the first arrival, ascending; sizes, or None where the file has none.

    Raises:
        ConfigError: The file is empty, or a line is wrong.
    """
    times: list[float] = []
    sizes: list[int] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        try:
            times.append(float(words[0]))
            sizes += [int(word) for word in words[1:]]
        except ValueError:
            raise ConfigError(
                f"{where}: {line[:60]!r}; expected a time in seconds, or a time and a size"
            ) from None
        if len(sizes) not in (0, len(times)) or (sizes and sizes[-1] < 1):
            raise ConfigError(
                f"{where}: {line[:60]!r}; every line has a size of 1 and more, or none has"
            )
        if len(times) > 1 and not times[-1] >= times[-2]:
            raise ConfigError(f"{where}: {times[-1]:g} s after {times[-2]:g} s; sort the times")
    if not times:
        raise ConfigError(f"{path}: no times; expected one a line, in seconds")
    found = np.array(times) - times[0]
    if rate is not None:
        if not found[-1] > 0:
            raise ConfigError(f"{path}: all times are the same; a rate cannot stretch them")
        found *= (len(found) - 1) / found[-1] / rate
    return found, np.array(sizes, np.int64) if sizes else None


def _until(duration_s: float, rate: float, draw: Draw) -> Times:
    """Times of arrival from gaps, drawn until they pass the end."""
    count = int(rate * duration_s + 6 * np.sqrt(rate * duration_s) + 16)
    gaps = draw(count)
    while gaps.sum() < duration_s:
        gaps = np.concatenate([gaps, draw(count)])
    times: Times = np.cumsum(gaps)
    return times[: np.searchsorted(times, duration_s, side="left")]
