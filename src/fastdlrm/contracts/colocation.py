"""What measurements of copies of a model on one machine say."""

import msgspec


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of one model, more and more of them."""

    model: str
    tables: str
    """private: each copy has its own; shared: all map the same."""
    knee: int | None
    """The last number of copies before the curve bends; None: it does not, as far as measured."""
    reason: str
    """What the next copies do; empty without a knee."""
    sla_ms: float | None
    """Of p99; None: none is stated."""
    copies_at_sla: int | None
    """The most copies with p99 <= SLA; None: none that has enough samples for a p99."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A model among copies of another, half and half, to as many copies of itself alone."""

    model: str
    partner: str
    tables: str
    copies: int
    """Of both together."""
    ratio: float
    """Of the medians; above 1 it is slower in this company."""
    low: float
    """Of its bootstrap interval, 95 %."""
    high: float


class Colocation(msgspec.Struct, frozen=True, kw_only=True):
    """All curves and pairs."""

    curves: tuple[Curve, ...]
    pairs: tuple[Pair, ...]
