import torch

from fastdlrm.bench.breakdown import breakdown, class_times

CPU = torch.device("cpu")
CLASSES = (("product", ("::mm",)), ("sum", ("::sum",)))


def test_each_step_has_the_time_of_its_own_operators():
    small, large = torch.ones(2, 2), torch.ones(600, 600)
    sizes = [small, large, small, large]

    def step(k):
        return (sizes[k] @ sizes[k]).sum()

    times = class_times(step, CPU, 4, CLASSES)
    assert set(times) == {"product", "sum", "other"}
    assert all(len(found) == 4 for found in times.values())
    # 600^3 against 2^3 products: the large ones take longer, whatever else the machine does
    assert min(times["product"][1], times["product"][3]) > min(
        times["product"][0], times["product"][2]
    )
    assert min(times["sum"]) > 0


def test_a_class_that_does_not_run_takes_no_time():
    times = class_times(lambda _: torch.ones(8).sum(), CPU, 2, CLASSES)
    assert times["product"] == [0.0, 0.0]


def test_classes_may_be_chosen():
    found = breakdown(lambda _: torch.ones(8).sum(), CPU, 2, CLASSES)
    assert set(found["ms_a_step"]) == {"product", "sum", "other"}
    assert found["ms_a_step"]["sum"] > 0
