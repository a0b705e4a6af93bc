"""Which device a config stands for, on a machine with a GPU and on one without."""

import pytest
import torch

from fastdlrm.errors import ConfigError
from fastdlrm.train.device import resolve_device, scoring_device

HAS_CUDA = torch.cuda.is_available()


def test_auto_is_what_there_is() -> None:
    assert resolve_device("auto") == torch.device("cuda" if HAS_CUDA else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(HAS_CUDA, reason="needs a machine without a CUDA device")
def test_a_gpu_that_is_not_there() -> None:
    message = (
        r"^train\.device is 'cuda': (this torch is built without CUDA|torch finds no NVIDIA GPU); "
        r".*, or set train\.device = 'auto' to train on the CPU$"
    )
    with pytest.raises(ConfigError, match=message):
        resolve_device("cuda")


def test_a_trained_model_is_used_anywhere() -> None:
    here = resolve_device("auto")
    assert [scoring_device(name) for name in ("auto", "cuda")] == [here, here]
    assert scoring_device("cpu") == torch.device("cpu")
