"""How random data is drawn: the [random] section of a preset.

Which features and tables there are, the [data] section says; their sizes are `max_rows`.
"""

from typing import Literal

import msgspec

from fastdlrm.errors import ConfigError

IdDistribution = Literal["uniform", "gaussian", "zipf", "cubic"]


class IdConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the ids of some sparse features are drawn, over all rows of each one's table."""

    features: tuple[str, ...] = ()
    """Names of the features."""
    distribution: IdDistribution = "uniform"
    """gaussian: truncated to the table; zipf: row k with a share in proportion to
    (k + 1)**-exponent; cubic: floor(rows * u**3) of a uniform u, which falls off more slowly."""
    mean: float = 0.5
    """Of "gaussian", in rows of the table."""
    std: float = 0.1
    """Of "gaussian", in rows of the table. More: closer to uniform."""
    exponent: float = 1.05
    """Of "zipf". More: fewer rows get most ids."""
    min_ids: int = 1
    """Fewest ids a bag."""
    max_ids: int = 1
    """Most ids a bag; every number from min_ids is equally likely."""

    def __post_init__(self) -> None:
        where = f"random.sparse {', '.join(self.features)}"
        if not 0 <= self.min_ids <= self.max_ids:
            raise ConfigError(
                f"{where}: min_ids {self.min_ids}, max_ids {self.max_ids}; 0 <= min_ids <= max_ids "
                "is allowed"
            )
        if not (0 < self.exponent < 100 and 0 <= self.mean <= 1 and 0 < self.std < 100):
            raise ConfigError(
                f"{where}: exponent {self.exponent:g}, mean {self.mean:g}, std {self.std:g}; "
                "exponent and std above 0 and below 100, mean 0 .. 1 are allowed"
            )

    @property
    def is_single(self) -> bool:
        """Whether every bag holds exactly one id."""
        return self.min_ids == self.max_ids == 1


class RandomConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Features that say nothing of the label."""

    label_rate: float = 0.25
    """Share of labels that are 1."""
    dense: Literal["uniform", "normal"] = "uniform"
    """uniform: 0 <= x < 1; normal: mean 0, standard deviation 1. As the model sees them: no
    transform is applied."""
    sparse: tuple[IdConfig, ...] = ()
    """By groups of features; one that no group names gets single uniform ids."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_rate <= 1:
            raise ConfigError(f"random.label_rate is {self.label_rate:g}; 0 .. 1 is allowed")
        names = [name for group in self.sparse for name in group.features]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"random.sparse: feature {name!r} stands {names.count(name)} times; name it in "
                    "one group"
                )
