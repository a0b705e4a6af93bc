"""Where to compute: the choice of a config against what this machine has."""

import torch

from fastdlrm.contracts.processor import processor_name
from fastdlrm.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for here.

    Raises:
        ConfigError: "cuda", where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    if name == "cuda" and not has_cuda:
        missing = (
            "this torch is built without CUDA; install a CUDA build"
            if torch.version.cuda is None
            else "torch finds no NVIDIA GPU; check its driver with `nvidia-smi`"
        )
        raise ConfigError(
            f"train.device is 'cuda': {missing}, or set train.device = 'auto' to train on the CPU"
        )
    return torch.device(name)


def scoring_device(name: str) -> torch.device:
    """Where a trained model is measured and used: on the CPU where its GPU is absent.

    Args:
        name: What it was trained with.
    """
    return resolve_device("cpu" if name == "cpu" else "auto")


def device_name(device: torch.device) -> str:
    """What its maker calls it; empty where that is not known."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
