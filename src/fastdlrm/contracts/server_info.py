"""What a server tells about itself and its models: JSON bodies of the Open Inference Protocol.

Field names are the protocol's, and those of Triton's extensions for statistics, configuration and
the model repository.
"""

from typing import Any

import msgspec


class ServerMetadata(msgspec.Struct, kw_only=True):
    """GET /v2."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()
    """Names of Triton's extensions that the server implements."""


class Live(msgspec.Struct, kw_only=True):
    """GET /v2/health/live."""

    live: bool


class Ready(msgspec.Struct, kw_only=True):
    """GET /v2/health/ready; clients read either key."""

    live: bool
    ready: bool


class ModelReady(msgspec.Struct, kw_only=True):
    """GET /v2/models/{model}/ready."""

    name: str
    ready: bool


class TensorMetadata(msgspec.Struct, kw_only=True):
    """An input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 stands for any size."""


class ModelMetadata(msgspec.Struct, kw_only=True):
    """GET /v2/models/{model}."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class ConfigTensor(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An input or output in a model's configuration."""

    name: str
    data_type: str
    """TYPE_FP32, ..., TYPE_STRING for BYTES."""
    dims: tuple[int, ...]
    optional: bool = False


class ModelConfig(msgspec.Struct, kw_only=True):
    """GET /v2/models/{model}/config: the fields of Triton's that say something here."""

    name: str
    platform: str = ""
    backend: str = ""
    max_batch_size: int = 0
    """0: shapes are whole, no batch dimension is left out of them."""
    input: tuple[ConfigTensor, ...] = ()
    output: tuple[ConfigTensor, ...] = ()


class Durations(msgspec.Struct, kw_only=True):
    """How often something happened and how long it took, all together."""

    count: int = 0
    ns: int = 0


class InferStatistics(msgspec.Struct, kw_only=True):
    """Where the time of requests went; Triton's names."""

    success: Durations
    """Whole requests that were answered."""
    fail: Durations
    queue: Durations
    compute_input: Durations
    """Encoding of columns into ids and numbers."""
    compute_infer: Durations
    compute_output: Durations


class BatchStatistics(msgspec.Struct, kw_only=True):
    """Executions of one batch size."""

    batch_size: int
    """Rows."""
    compute_input: Durations
    compute_infer: Durations
    compute_output: Durations


class ModelStatistics(msgspec.Struct, kw_only=True):
    """Statistics of one version of a model."""

    name: str
    version: str
    last_inference: int
    """Milliseconds since 1970."""
    inference_count: int
    """Rows scored."""
    execution_count: int
    """Batches executed."""
    inference_stats: InferStatistics
    batch_stats: tuple[BatchStatistics, ...] = ()


class Statistics(msgspec.Struct, kw_only=True):
    """GET /v2/models[/{model}]/stats."""

    model_stats: tuple[ModelStatistics, ...]


class RepositoryIndexBody(msgspec.Struct, kw_only=True):
    """POST /v2/repository/index."""

    ready: bool = False
    """Only what is ready."""


class RepositoryBody(msgspec.Struct, kw_only=True):
    """POST /v2/repository/models/{model}/load and /unload."""

    parameters: dict[str, Any] = {}


class RepositoryEntry(msgspec.Struct, kw_only=True):
    """A version of a model in the repository."""

    name: str
    version: str
    state: str
    """UNKNOWN, READY, UNAVAILABLE, LOADING or UNLOADING."""
    reason: str = ""
    """Why it is in that state, where there is something to say."""


def config_type(datatype: str) -> str:
    """A datatype's name in a model's configuration."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
