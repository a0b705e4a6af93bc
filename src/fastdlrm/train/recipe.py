"""One preset: everything a run is made of."""

import msgspec

from fastdlrm.data.config import DataConfig
from fastdlrm.model.config import ModelConfig
from fastdlrm.train.config import TrainConfig


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete preset or config file."""

    seed: int
    """Of initialisation, dropout and the order of rows; the same seed gives the same run."""
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
