"""Which [data] sections are refused; what their groups spell out is tested with the schema."""

import pytest

from fastdlrm.data.config import Holdout
from fastdlrm.errors import ConfigError


@pytest.mark.parametrize(
    "settings",
    [
        {"by": "none"},
        {"by": "file", "amount": 2},
        {"by": "file", "amount": 0.5},
        {"by": "range", "amount": 0.5, "num_ranges": 7},
        {"by": "range", "amount": 3, "num_ranges": 7},
        {"by": "position", "amount": 0.1},
        {"by": "time", "amount": 0.1, "column": "t"},
    ],
)
def test_holdouts_there_are(settings: dict[str, object]) -> None:
    assert Holdout(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "none", "amount": 1}, "amount 1 with by = 'none'; none takes 0"),
        ({"by": "file"}, "amount 0 with by = 'file'; .* whole number from 1 or a share of the"),
        ({"by": "file", "amount": 1.5}, "amount 1.5 with by = 'file'"),
        ({"by": "range", "amount": -1, "num_ranges": 7}, "amount -1 with by = 'range'"),
        ({"by": "hash", "amount": 1}, "amount 1 with by = 'hash'; .* a share between 0 and 1"),
        ({"by": "range", "amount": 1}, "num_ranges 0 with by = 'range'; range takes 2 or more"),
        ({"by": "range", "amount": 1, "num_ranges": 1}, "num_ranges 1 with by = 'range'"),
        ({"by": "file", "amount": 1, "num_ranges": 7}, "num_ranges 7 with by = 'file'; .* takes 0"),
        ({"by": "time", "amount": 0.1}, "column '' with by = 'time'; time needs it"),
        ({"by": "file", "amount": 1, "column": "t"}, "column 't' with by = 'file'"),
    ],
)
def test_holdouts_that_contradict_themselves(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"split: {message}"):
        Holdout(**settings)  # type: ignore[arg-type]
