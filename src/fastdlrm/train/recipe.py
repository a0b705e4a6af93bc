"""One preset: everything a run is made of."""

from typing import Literal

import msgspec

from fastdlrm.data.config import DataConfig
from fastdlrm.data.synthetic import RandomConfig
from fastdlrm.errors import ConfigError
from fastdlrm.model.config import ModelConfig
from fastdlrm.train.config import TrainConfig


class MlperfConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What MLPerf's log says of the submission; of account only to `train --mllog`."""

    benchmark: str = "dlrm_dcnv2"
    """MLPerf's name of it."""
    organization: str = ""
    """That submits; a log asks for it."""
    platform: str = ""
    """Name of the system; empty: that of the GPU or of the processor."""
    division: Literal["closed", "open"] = "closed"
    """open: model, data or optimizer may differ from the benchmark's."""
    status: Literal["onprem", "cloud", "preview", "research"] = "onprem"
    """Availability of the system."""
    cache_cleared: bool = False
    """Whether the system's caches were emptied before the start, as MLPerf asks."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete preset or config file."""

    seed: int
    """Of initialisation, dropout and the order of rows; the same seed gives the same run."""
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    random: RandomConfig = RandomConfig()
    """How `fastdlrm random` draws features; of no account to raw files."""
    mlperf: MlperfConfig = MlperfConfig()
    sla_ms: float | None = None
    """By when a query's answer must be there; benchmarks take it unless told otherwise."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed}; 0 .. 2**64 - 1 is allowed")
        if (self.model.weighted_pooling, self.train.table_placement) == ("learned", "host"):
            raise ConfigError(
                "model.weighted_pooling is 'learned' with train.table_placement 'host': weights "
                "are learned on the device that holds the rows; set table_placement = 'device'"
            )
        if self.sla_ms is not None and not self.sla_ms > 0:
            raise ConfigError(f"sla_ms is {self.sla_ms:g}; above 0 is allowed")
