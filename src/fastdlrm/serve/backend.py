"""What HTTP and gRPC have in common: a decoded request becomes scores, questions become answers.

Invariants: a request is checked whole before it waits; every query that was decoded is counted
once, as answered or as failed.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastdlrm import __version__
from fastdlrm.contracts.payload import pack
from fastdlrm.contracts.server_info import (
    ConfigTensor,
    ModelConfig,
    ModelMetadata,
    RepositoryEntry,
    ServerMetadata,
    Statistics,
    TensorMetadata,
    config_type,
)
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.contracts.wire import Infer, Outcome
from fastdlrm.errors import NotFound, Overloaded, RequestError
from fastdlrm.serve.config import Limits
from fastdlrm.serve.metrics import Metrics
from fastdlrm.serve.query import Query
from fastdlrm.serve.repository import Repository, Version

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
PLATFORM = "fastdlrm"
SCORE = "score"
ITEM_INDEX = "item_index"
OUTPUTS = (SCORE, ITEM_INDEX)


class Backend:
    """Answers for all protocols.

    Args:
        repository: The models.
        limits: What a request may ask for.
        metrics: Where queries are counted.

    Attributes:
        accepts: Whether new requests are welcome; the server's life sets it.
    """

    def __init__(self, repository: Repository, limits: Limits, metrics: Metrics) -> None:
        self.accepts = False
        self._repository = repository
        self._limits = limits
        self._metrics = metrics

    async def infer(
        self, infer: Infer, deadline_s: float | None = None, *, arrived_ns: int = 0
    ) -> Outcome:
        """Score a request.

        Args:
            infer: The request.
            deadline_s: The transport's, in time of the event loop. Of it and the request's own
                parameter the earlier counts; where there is neither, the config's default.
            arrived_ns: `perf_counter_ns` of its arrival; 0: now.

        Raises:
            RequestError: It is wrong, or asks for more rows than allowed.
            NotFound: No such model or version.
            Overloaded: It would not be answered in time.
            DeadlineExceeded: Its deadline passed.
            ServeError: The server failed.
        """
        version = self._repository.get(infer.model_name, infer.model_version)
        counted = self._metrics.of(version.name)
        tally = version.tally
        arrived_ns = arrived_ns or time.perf_counter_ns()
        try:
            outcome, num_rows = await self._score(infer, version, arrived_ns, deadline_s)
        except BaseException as problem:
            counted.failed(problem)
            tally.num_failed += 1
            tally.fail_ns += time.perf_counter_ns() - arrived_ns
            raise
        total_ns = time.perf_counter_ns() - arrived_ns
        counted.total.observe(total_ns * 1e-9)
        counted.rows.observe(num_rows)
        self._metrics.recent.answered(total_ns, num_rows)
        tally.num_succeeded += 1
        tally.num_rows += num_rows
        tally.success_ns += total_ns
        return outcome

    async def _score(
        self, infer: Infer, version: Version, arrived_ns: int, deadline_s: float | None
    ) -> tuple[Outcome, int]:
        engine = version.engine
        if infer.outputs:
            infer.check_outputs(OUTPUTS if infer.parameters.top_k is not None else (SCORE,))
        num_rows = engine.num_rows(infer.inputs)
        if num_rows > self._limits.max_rows:
            raise RequestError(
                f"{num_rows} rows in one request; at most {self._limits.max_rows} are allowed, "
                "send several requests"
            )
        query = Query(
            num_rows=num_rows,
            payload=pack(infer.inputs),
            deadline_s=self._deadline_s(arrived_ns, infer.parameters.timeout_us, deadline_s),
            priority=infer.parameters.priority,
        )
        counted = self._metrics.of(version.name)
        counted.parse.observe((time.perf_counter_ns() - arrived_ns) * 1e-9)
        scores = await engine.submit(query)
        counted.queue.observe(scores.queue_ns * 1e-9)
        counted.encode.observe(scores.encode_ns * 1e-9)
        counted.compute.observe(scores.compute_ns * 1e-9)
        tally = version.tally
        tally.queue_ns += scores.queue_ns
        tally.encode_ns += scores.encode_ns
        tally.compute_ns += scores.compute_ns
        outcome = Outcome(
            model_name=version.name,
            model_version=version.number,
            id=infer.id,
            outputs=outputs_of(scores.scores, infer.parameters.top_k),
        )
        return outcome, num_rows

    def _deadline_s(self, arrived_ns: int, timeout_us: int, deadline_s: float | None) -> float:
        """When the answer must be there, in time of the event loop."""
        limits = self._limits
        # the loop's clock is this one, but may stand still for milliseconds
        arrived_s = time.monotonic() - (time.perf_counter_ns() - arrived_ns) * 1e-9
        latest_s = arrived_s + limits.max_timeout_ms * 1e-3
        if timeout_us:
            latest_s = min(latest_s, arrived_s + timeout_us * 1e-6)
        if deadline_s is not None:
            return min(latest_s, deadline_s)
        return latest_s if timeout_us else arrived_s + limits.default_timeout_ms * 1e-3

    async def is_live(self) -> bool:
        """Whether the server answers at all."""
        return True

    async def is_ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.accepts

    async def server_metadata(self) -> ServerMetadata:
        """What the server is and which extensions of the protocol it has."""
        return ServerMetadata(name="fastdlrm", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Inputs and outputs of a model.

        Raises:
            NotFound: No such model or version.
            Overloaded: It is not ready.
        """
        found = self._repository.get(name, version)
        return ModelMetadata(
            name=found.name,
            versions=(found.number,),
            platform=PLATFORM,
            inputs=tuple(
                TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
                for spec in found.engine.inputs
                if spec.form == "columns" and not spec.is_optional
            ),
            outputs=OUTPUT_METADATA,
        )

    async def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether a version can be asked; an unknown one cannot."""
        try:
            return self.accepts and self._repository.get(name, version).state == "READY"
        except NotFound:
            return False

    async def model_config(self, name: str, version: str = "") -> ModelConfig:
        """Inputs and outputs of a model in the words of the configuration extension.

        Raises:
            NotFound: No such model or version.
            Overloaded: It is not ready.
        """
        found = self._repository.get(name, version)
        return ModelConfig(
            name=found.name,
            platform=PLATFORM,
            backend=PLATFORM,
            input=tuple(
                ConfigTensor(
                    name=spec.name,
                    data_type=config_type(spec.datatype),
                    dims=spec.shape,
                    optional=spec.is_optional or spec.form != "columns",
                )
                for spec in found.engine.inputs
            ),
            output=tuple(
                ConfigTensor(
                    name=output.name, data_type=config_type(output.datatype), dims=output.shape
                )
                for output in OUTPUT_METADATA
            ),
        )

    async def statistics(self, name: str = "", version: str = "") -> Statistics:
        """Counts and times of a version, or of all that serve.

        Raises:
            NotFound: No such model or version.
        """
        found = [self._repository.get(name, version)] if name else self._repository.serving()
        return Statistics(model_stats=tuple(v.tally.statistics(v.name, v.number) for v in found))

    async def repository_index(self, *, ready: bool = False) -> list[RepositoryEntry]:
        """All versions there are, or those that are ready."""
        return [
            RepositoryEntry(
                name=version.name,
                version=version.number,
                state=version.state,
                reason=version.reason,
            )
            for version in self._repository.index()
            if version.state == "READY" or not ready
        ]

    async def load_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Serve a model's current version, or the one that the parameter `version` names.

        Raises:
            RequestError: A parameter is wrong.
            NotFound: No such model or version.
            ExportError: It cannot be served.
            Overloaded: The server is starting or shutting down.
        """
        self._require_life()
        await self._repository.load(name, version_in(parameters))

    async def unload_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Stop serving a model, once what it is asked now is answered.

        Raises:
            NotFound: It is not served.
            Overloaded: The server is starting or shutting down.
        """
        self._require_life()
        await self._repository.unload(name)

    def _require_life(self) -> None:
        if not self.accepts:
            raise Overloaded("the server is starting or shutting down; try another one")


OUTPUT_METADATA = (
    TensorMetadata(name=SCORE, datatype="FP32", shape=(-1,)),
    TensorMetadata(name=ITEM_INDEX, datatype="INT64", shape=(-1,)),
)


def outputs_of(scores: np.typing.NDArray[np.float32], top_k: int | None) -> dict[str, WireTensor]:
    """Scores as tensors; with `top_k` the best of them, descending, ties by index.

    Args:
        scores: Shape (N,).
        top_k: How many; None for all in their order.
    """
    if top_k is None:
        return {SCORE: WireTensor("FP32", scores.shape, scores)}
    order = np.argsort(-scores, kind="stable")[:top_k]
    return {
        ITEM_INDEX: WireTensor("INT64", order.shape, order),
        SCORE: WireTensor("FP32", order.shape, scores[order]),
    }


def version_in(parameters: Mapping[str, Any]) -> str:
    """The version that a request to load names; empty where it names none.

    Raises:
        RequestError: Another parameter, or a version that is no number.
    """
    unknown = sorted(set(parameters) - {"version"})
    if unknown:
        raise RequestError(f"parameter {unknown[0][:64]!r} is not known; allowed is version")
    version = parameters.get("version", "")
    text = str(version) if type(version) in (int, str) else "?"
    if text and not (text.isascii() and text.isdigit()):
        raise RequestError(f"parameter version: {text[:64]!r} is no number of a version")
    return text
