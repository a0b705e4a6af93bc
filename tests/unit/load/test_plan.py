"""Plans that contradict themselves, and the schedule of one that does not."""

import numpy as np
import pytest

from fastdlrm.errors import ConfigError, DataError
from fastdlrm.load.plan import Plan, schedule_of
from fastdlrm.load.samples import Samples


def plan_of(**changes):
    return Plan(**{"url": "http://h:1", "model": "m", "rate": 100.0, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": None}, "neither rate, trace nor closed; give one of them"),
        ({"closed": 4}, "closed and rate .* exclude each other"),
        ({"arrivals": "trace"}, "arrivals 'trace' with trace '': arrivals 'trace' takes a file"),
        ({"trace": "t"}, "arrivals 'exponential' with trace 't'"),
        ({"rate": 0.0}, "rate 0: 0.001 to 1e.06 is allowed"),
        ({"percentile": 100.0}, "percentile 100: 1 to 99.999 is allowed"),
        ({"processes": 9, "max_connections": 8}, "max_connections 8: 9 to 1e.06 is allowed"),
        ({"rate": None, "closed": 2, "processes": 3}, r"closed 2: 3 \(processes\) to 2048"),
        ({"sizes": "none"}, "sizes 'none'"),
        ({"url": "h:1"}, "url 'h:1': expected http://HOST:PORT"),
        ({"url": "ftp://h"}, "expected http://HOST:PORT or https://HOST:PORT"),
    ],
)
def test_a_wrong_plan_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(**changes)


def test_the_warm_up_is_five_seconds_and_500_queries():
    assert plan_of(rate=1000.0).warmup_seconds == 5
    assert plan_of(rate=20.0).warmup_seconds == 25
    assert plan_of(rate=20.0, warmup_s=0.0).warmup_seconds == 0


def test_a_schedule_covers_warm_up_and_measurement():
    plan = plan_of(duration_s=20.0, seed=3)
    schedule = schedule_of(plan)
    assert schedule.num_queries == len(schedule.sizes) == pytest.approx(2500, abs=300)
    assert 24.5 < schedule.times_s[-1] < 25
    parts = [schedule.part(index, 3) for index in range(3)]
    assert np.sort(np.concatenate(parts)).tolist() == list(range(schedule.num_queries))


def test_a_trace_has_its_own_sizes(tmp_path):
    path = tmp_path / "t"
    path.write_text("0 5\n1 6\n2 7\n30 8\n")
    plan = plan_of(rate=None, arrivals="trace", trace=str(path), warmup_s=1.0, duration_s=5.0)
    schedule = schedule_of(plan)
    assert schedule.times_s.tolist() == [0, 1, 2]
    assert schedule.sizes.tolist() == [5, 6, 7]


def test_a_schedule_without_a_measured_query_is_refused():
    with pytest.raises(ConfigError, match=r"no query in 0.01 s after a warm-up of 1 s; raise the"):
        schedule_of(plan_of(rate=0.5, warmup_s=1.0, duration_s=0.01))


def test_samples_come_back_from_their_file(tmp_path):
    path = tmp_path / "s.arrow"
    samples = Samples(
        np.array([0.0, 1.0]),
        np.array([0.0, np.nan]),
        np.array([0.5, np.nan]),
        np.array([200, 0], np.int16),
        np.array([3, 4]),
    )
    samples.write(path)
    back = Samples.read(path)
    for name in Samples.__struct_fields__:
        assert getattr(back, name).dtype == getattr(samples, name).dtype
        assert np.array_equal(getattr(back, name), getattr(samples, name), equal_nan=True)
    path.write_bytes(b"no arrow")
    with pytest.raises(DataError, match="no samples of a load run"):
        Samples.read(path)


def test_samples_are_joined_in_order_of_arrival():
    parts = [
        Samples(*(np.array(values) for values in ([0.0, 2.0], [0, 2], [1, 3], [200, 200], [1, 3]))),
        Samples(*(np.array(values) for values in ([1.0], [1], [2], [503], [2]))),
    ]
    joined = Samples.join(parts)
    assert joined.scheduled_s.tolist() == [0, 1, 2]
    assert joined.size.tolist() == [1, 2, 3]
    assert joined.between(0.5, 2.0).status.tolist() == [503]
