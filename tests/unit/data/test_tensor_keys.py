import numpy as np
import pytest
import torch

from fastdlrm.contracts import hashing
from fastdlrm.data import keys, tensor_keys

EDGES = [0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]


def _tensor(numbers):
    return torch.from_numpy(np.array(numbers, dtype=np.uint64).view(np.int64))


def test_mix_is_the_definitions():
    mixed = tensor_keys.mix(_tensor(EDGES)).numpy().view(np.uint64)
    assert mixed.tolist() == [hashing.mix(key) for key in EDGES]


def test_a_keys_upper_bits_are_a_number_below_1():
    assert tensor_keys.unit_of(_tensor([0, 2**63, 2**64 - 1])).tolist() == [0, 0.5, 1 - 2**-53]


def test_draws_are_those_of_arrays():
    stream = keys.stream(2**64 - 1, "test")
    drawn = tensor_keys.draws(stream, 7, 5007, torch.device("cpu"))
    assert drawn.numpy().view(np.uint64).tolist() == keys.draws(stream, 7, 5007).tolist()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_device_draws_the_same_numbers(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    stream = keys.stream(3, "test")
    drawn = tensor_keys.uniforms(stream, 7, 5007, torch.device(device))
    assert drawn.dtype == torch.float64
    assert drawn.tolist() == keys.uniforms(stream, 7, 5007).tolist()
