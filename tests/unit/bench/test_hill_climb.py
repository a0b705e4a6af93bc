"""The climb on planted curves."""

import pytest

from fastdlrm.bench.hill_climb import hill_climb, static_rows

LADDER = (16, 32, 64, 128, 256, 512)


def climbed(values, start):
    asked = []

    def value(rung):
        asked.append(rung)
        return values[LADDER.index(rung)]

    found = hill_climb(LADDER, start, value)
    assert list(found.visited) == asked
    assert len(set(asked)) == len(asked)
    return found


@pytest.mark.parametrize(
    ("values", "start", "best", "visited"),
    [
        ((1, 2, 3, 4, 5, 6), 32, 512, (32, 64, 128, 256, 512)),
        ((6, 5, 4, 3, 2, 1), 128, 16, (128, 256, 64, 32, 16)),
        ((1, 2, 5, 4, 3, 2), 16, 64, (16, 32, 64, 128)),
        ((1, 2, 5, 9, 3, 2), 128, 128, (128, 256, 64)),
        ((3, 3, 3, 3, 3, 3), 64, 64, (64, 128, 32)),
        ((1, 2, 3, 4, 5, 6), 512, 512, (512, 256)),
    ],
)
def test_one_peak_is_found(values, start, best, visited):
    assert climbed(values, start) == (best, visited)


def test_a_dip_hides_the_higher_peak():
    """From 32 up: 64 is lower, so it turns; 512 is the best and is never seen."""
    assert climbed((1, 5, 2, 6, 7, 9), 32).best == 32


def test_the_static_choice_deals_the_largest_query_out():
    """1000 samples: 25 a part on 40 workers; 700 on 3: 233.3, so 234."""
    assert static_rows(1000, 40) == 25
    assert static_rows(700, 3) == 234
