"""How many samples (candidate items) each query has.

Distributions, and what they give with the default largest size (mean, 99th percentile, CV squared):

production   20 equiprobable sizes of MLPerf's dist_quantile, 100 to 700, which imitate the
             sizes of a production service (270, 700, 0.33)
lognormal    exp(N(5.1, 0.2)), of the DeepRecSys repository (167, 261, 0.04)
normal       N(165, 16), of the same (165, 202, 0.01)
heavy        exp(N(4.6, 0.8)) up to 1000: a tail such as production's, with small queries too
             (136, 638, 0.82)
fixed        always the same
file         one size a line, each equally likely

Source: MLPerf inference rules (recommendation); Gupta et al. 2020, DeepRecSys, arXiv:2001.02772.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdlrm.errors import ConfigError

Sizes = NDArray[np.int64]

PRODUCTION = (100, 100, *[200] * 12, 300, 300, 400, 500, 600, 700)
DEFAULTS: dict[str, tuple[float, ...]] = {
    "production": (),
    "lognormal": (5.1, 0.2, 1024),
    "normal": (165, 16, 1024),
    "heavy": (4.6, 0.8, 1000),
}
"""Parameters of each distribution: location, width, largest size."""
FORMS = (
    "production, lognormal[:MU,SIGMA[,MAX]], normal[:MEAN,SD[,MAX]], heavy, fixed:N or file:PATH"
)


def query_sizes(name: str, count: int, seed: int) -> Sizes:
    """Draw sizes.

    Args:
        name: A distribution, as `FORMS` says: "production", "fixed:100", "lognormal:5.1,0.2,1024".
        count: How many.
        seed: The same seed gives the same sizes.

    Returns:
        Shape (count,), each 1 or more.

    Raises:
        ConfigError: The name is none of these, a parameter is wrong, or the file holds no sizes.
    """
    kind, _, text = name.partition(":")
    random = np.random.default_rng((seed, 1))  # another stream than that of the arrivals
    if kind == "fixed":
        return np.full(count, _whole(name, text))
    if kind == "file":
        return random.choice(_read(Path(text)), count)
    if kind not in DEFAULTS or (kind == "production" and text):
        raise _wrong(name)
    if kind == "production":
        return random.choice(np.array(PRODUCTION, np.int64), count)
    location, width, largest = _parameters(name, text, DEFAULTS[kind])
    drawn = random.normal(location, width, count)
    if kind != "normal":
        drawn = np.exp(drawn)
    return np.clip(np.rint(drawn), 1, largest).astype(np.int64)


def mean_size(name: str, seed: int = 0) -> float:
    """Mean of a distribution, over 100,000 draws."""
    return float(many_sizes(name, seed).mean())


def many_sizes(name: str, seed: int = 0) -> Sizes:
    """100,000 draws, of which what a distribution is can be seen."""
    return query_sizes(name, 100_000, seed)


def check_sizes(name: str) -> None:
    """Refuse a name that `query_sizes` does not know.

    Raises:
        ConfigError: As `query_sizes`.
    """
    query_sizes(name, 1, 0)


def _parameters(name: str, text: str, defaults: tuple[float, ...]) -> tuple[float, float, float]:
    try:
        given = [float(word) for word in text.split(",")] if text else []
    except ValueError:
        raise _wrong(name) from None
    location, width, largest = (*given, *defaults[len(given) :])[:3]
    if len(given) not in (0, 2, 3) or not (np.isfinite(location) and width >= 0 and largest >= 1):
        raise _wrong(name)
    return location, width, largest


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise _wrong(name)
    return int(text)


def _read(path: Path) -> Sizes:
    sizes = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.strip():
            if not line.strip().isdecimal() or int(line) < 1:
                raise ConfigError(
                    f"{path}, line {number}: {line[:60]!r}; expected a size, 1 or more"
                )
            sizes.append(int(line))
    if not sizes:
        raise ConfigError(f"{path}: no sizes; expected one a line")
    return np.array(sizes, np.int64)


def _wrong(name: str) -> ConfigError:
    return ConfigError(f"sizes {name!r}: {FORMS} is allowed")
