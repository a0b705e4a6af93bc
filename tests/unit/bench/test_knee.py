from fastdlrm.bench.knee import Point, copies_at_sla, knee


def test_the_knee_is_where_added_copies_bring_little():
    # 100 alone; +90 a copy up to 4, then (376 - 370) / 4 = 1.5 a copy, below 10
    points = [
        Point(1, 100, 10, 11),
        Point(2, 190, 11, 12),
        Point(4, 370, 11, 12),
        Point(8, 376, 21, 24),
        Point(16, 700, 23, 25),
    ]
    found = knee(points)
    assert found.copies == 4
    assert found.reason == "an added copy brings 2% of one alone"


def test_gains_are_of_a_copy_where_one_alone_was_not_measured():
    # 200 of 2 are 100 a copy; (230 - 200) / 2 = 15 a copy is enough, (250 - 230) / 4 = 5 is not
    assert knee([Point(2, 200, 1, 1), Point(4, 230, 1, 1), Point(8, 250, 1, 1)]).copies == 4


def test_the_knee_is_where_the_tail_breaks_away():
    """Broadwell of arXiv:1906.03109, section VI: the mean grows on, p99 jumps at 20 to 23 jobs.

    Read off its figure: 0.55 ms alone, 1.55 at 10, 2.05 at 20; p99 4.8 at 23, where the mean is
    about 2.15. Samples a second are 32 N over the mean; spreads are 1.1 and 2.2 (4.8 / 2.15).
    """
    means = {1: 0.55, 10: 1.55, 20: 2.05, 23: 2.15}
    tails = {1: 0.6, 10: 1.8, 20: 2.4, 23: 4.8}
    points = [Point(n, 32e3 * n / means[n], means[n], tails[n]) for n in means]
    found = knee(points)
    assert found.copies == 20
    assert found.reason == "with 23 p99 is 2.2 times the median, 1.1 before"


def test_a_curve_may_have_no_knee():
    assert knee([Point(1, 100, 10, 20), Point(2, 200, 10, 30)]) is None
    assert knee([Point(1, 100, 10, None), Point(2, 200, 10, 90)]) is None
    assert knee([Point(3, 100, 10, 11)]) is None


def test_copies_at_sla():
    points = [Point(1, 1, 1, 5.0), Point(2, 1, 1, 9.0), Point(3, 1, 1, 12.0), Point(4, 1, 1, None)]
    assert copies_at_sla(points, 9.0) == 2
    assert copies_at_sla(points, 100.0) == 3
    assert copies_at_sla(points, 4.9) is None
