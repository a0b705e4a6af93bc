import pytest

from fastdlrm.parallel.footprint import (
    num_parameters,
    parameter_bytes,
    size_text,
    state_bytes,
)


def test_parameters_by_hand() -> None:
    # 13 x 4 + 4, 4 x 2 + 2
    assert num_parameters((13, 4, 2)) == 66
    assert num_parameters(()) == 0


@pytest.mark.parametrize(
    ("optimizer", "precision", "size"),
    # itself and its gradient; a copy in bf16; two numbers of adam
    [("sgd", "fp32", 8), ("sgd", "bf16", 10), ("adam", "tf32", 16), ("adagrad", "bf16", 14)],
)
def test_a_parameter(optimizer: str, precision: str, size: int) -> None:
    assert parameter_bytes(optimizer, precision) == size


@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [("sgd", (0, 0)), ("adagrad", (0, 4)), ("rowwise_adagrad", (4, 0)), ("adam", (0, 8))],
)
def test_state_of_a_row_and_of_its_numbers(optimizer: str, sizes: tuple[int, int]) -> None:
    assert state_bytes(optimizer) == sizes


@pytest.mark.parametrize(
    ("size", "text"),
    [(512, "0.50 KiB"), (2**20, "1.00 MiB"), (2**29, "0.50 GiB"), (3 * 2**40, "3072.00 GiB")],
)
def test_sizes_for_a_person(size: int, text: str) -> None:
    assert size_text(size) == text
