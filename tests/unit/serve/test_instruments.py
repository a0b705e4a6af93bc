from prometheus_client import CollectorRegistry, generate_latest

from fastdlrm.serve.instruments import Histogram, counters, histograms


def test_a_histogram_counts_by_upper_bound():
    histogram = Histogram((0.5, 1.0))
    for value in (0.25, 0.5, 0.75, 3.0):
        histogram.observe(value)
    # At or below 0.5: 2; at or below 1: 3; all: 4. 0.25 + 0.5 + 0.75 + 3 = 4.5
    assert histogram.cumulative() == [("0.5", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert (histogram.count, histogram.total) == (4, 4.5)


def test_families_are_read_by_the_library():
    registry = CollectorRegistry()
    seconds = histograms("wait_seconds", "Waits", (0.5,), "stage")
    shed = counters("shed", "Refused", "cause")
    registry.register(seconds)
    registry.register(shed)
    seconds.labels("queue").observe(0.25)
    assert seconds.labels("queue") is seconds.labels("queue")
    shed.labels("full").value += 2
    text = generate_latest(registry).decode()
    assert 'wait_seconds_bucket{le="0.5",stage="queue"} 1.0' in text
    assert 'wait_seconds_count{stage="queue"} 1.0' in text
    assert 'wait_seconds_sum{stage="queue"} 0.25' in text
    assert 'shed_total{cause="full"} 2.0' in text
    assert shed.items()[0][0] == ("full",)
