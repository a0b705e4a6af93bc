import pytest

from fastdlrm.serve.recent import HISTORY_S, Recent, Second


def test_percentiles_are_within_a_bins_width():
    recent = Recent()
    for latency_ms in range(1, 101):
        recent.answered(latency_ms * 1_000_000, rows=2)
    second = recent.now
    assert (second.queries, second.rows) == (100, 200)
    for share, expected in ((0.5, 50), (0.95, 95), (0.99, 99)):
        assert second.latency_ms(share) == pytest.approx(expected, rel=0.022)


def test_extremes_fall_into_the_outer_bins():
    recent = Recent()
    recent.answered(0, rows=1)
    assert recent.now.latency_ms(1.0) == pytest.approx(0.001, rel=0.05)
    recent.answered(10**15, rows=1)
    assert recent.now.latency_ms(1.0) > 100_000


def test_no_query_has_no_latency():
    assert Second().latency_ms(0.5) is None


def test_seconds_pass():
    recent = Recent()
    recent.answered(1_000_000, rows=3)
    recent.tick(101.0, queue_rows=7)
    recent.now.errors += 1
    recent.tick(102.0, queue_rows=5)
    assert [end for end, _ in recent.since(101.0)] == [102.0]
    count, total = recent.over(10)
    assert (count, total.queries, total.rows, total.errors) == (2, 1, 3, 1)
    assert total.queue_rows == 7
    assert recent.over(1)[1].queries == 0


def test_only_the_last_minutes_are_kept():
    recent = Recent()
    for second in range(HISTORY_S + 5):
        recent.tick(float(second), 0)
    assert len(recent.since(-1)) == HISTORY_S
