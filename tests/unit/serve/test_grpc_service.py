"""The service over a real connection: answers, deadlines, streams, tokens and statuses."""

import asyncio
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from fastdlrm.contracts.parameters import Parameters
from fastdlrm.contracts.server_info import (
    BatchStatistics,
    ConfigTensor,
    Durations,
    InferStatistics,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    RepositoryEntry,
    ServerMetadata,
    Statistics,
    TensorMetadata,
    config_type,
)
from fastdlrm.contracts.tensors import WireTensor
from fastdlrm.contracts.wire import Infer, Outcome
from fastdlrm.errors import (
    DeadlineExceeded,
    NotFound,
    Overloaded,
    RequestError,
    ServeError,
)
from fastdlrm.serve.grpc_messages import METHODS, SERVICE
from fastdlrm.serve.grpc_service import GrpcService, listen, make_server
from tests.grpc_client import outcome_of, request_of

ERRORS: dict[str, Exception] = {
    "wrong": RequestError("column 'C1' is missing"),
    "absent": NotFound("model 'absent' is not served"),
    "busy": Overloaded("too many", retry_after_s=0.25),
    "late": DeadlineExceeded("its deadline passed"),
    "broken": ServeError("worker 3 died"),
    "bug": KeyError("internals"),
    "long": RequestError("x" * 100_000),
}


class Doubler:
    """A model whose score is twice its input, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.deadlines: list[float | None] = []
        self.ready = False
        self.asked: list[tuple[Any, ...]] = []

    async def infer(self, infer: Infer, deadline_s: float | None) -> Outcome:
        self.deadlines.append(deadline_s)
        if infer.model_name in ERRORS:
            raise ERRORS[infer.model_name]
        score = WireTensor.from_array(infer.inputs["x"].values() * np.float32(2))
        return Outcome(
            model_name=infer.model_name, model_version="1", id=infer.id, outputs={"score": score}
        )

    async def is_live(self) -> bool:
        return True

    async def is_ready(self) -> bool:
        return self.ready

    async def is_model_ready(self, name: str, version: str) -> bool:
        return (name, version) == ("m", "2")

    async def server_metadata(self) -> ServerMetadata:
        return ServerMetadata(name="fastdlrm", version="1", extensions=("statistics",))

    async def model_metadata(self, name: str, version: str) -> ModelMetadata:
        x = TensorMetadata(name="x", datatype="FP32", shape=(-1, 2))
        return ModelMetadata(name=name, versions=(version,), platform="p", inputs=(x,), outputs=())

    async def model_config(self, name: str, version: str) -> ModelConfig:
        inputs = (
            ConfigTensor(name="x", data_type=config_type("FP32"), dims=(-1, 2), optional=True),
            ConfigTensor(name="t", data_type=config_type("BYTES"), dims=(-1,)),
        )
        score = ConfigTensor(name="score", data_type="TYPE_FP32", dims=(-1,))
        return ModelConfig(name=name, backend="fastdlrm", input=inputs, output=(score,))

    async def statistics(self, name: str, version: str) -> Statistics:
        some = Durations(count=2, ns=2**60)
        spent = InferStatistics(
            success=some,
            fail=Durations(),
            queue=some,
            compute_input=some,
            compute_infer=some,
            compute_output=some,
        )
        batch = BatchStatistics(
            batch_size=16, compute_input=some, compute_infer=some, compute_output=some
        )
        found = ModelStatistics(
            name=name,
            version=version,
            last_inference=5,
            inference_count=7,
            execution_count=3,
            inference_stats=spent,
            batch_stats=(batch,),
        )
        return Statistics(model_stats=(found,))

    async def repository_index(self, *, ready: bool) -> Sequence[RepositoryEntry]:
        self.asked.append(("index", ready))
        return [RepositoryEntry(name="m", version="1", state="READY", reason="why")]

    async def load_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.asked.append(("load", name, dict(parameters)))
        if name in ERRORS:
            raise ERRORS[name]

    async def unload_model(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.asked.append(("unload", name, dict(parameters)))


class Client:
    """Calls of the service by name, with messages of the private pool."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    async def __call__(self, name: str, request: Any = None, **options: Any) -> Any:
        method = METHODS[name]
        call = self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=method.response.FromString,
        )
        return await call(method.request() if request is None else request, **options)


@asynccontextmanager
async def serving(
    backend: Doubler, max_message_bytes: int = 2**20, **options: Any
) -> AsyncIterator[Client]:
    service = GrpcService(backend, **options)
    server = make_server(service, max_message_bytes=max_message_bytes)
    port = listen(server, "127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(channel)
    finally:
        await server.stop(None)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def doubling(model: str = "m", **fields: Any) -> Any:
    x = WireTensor.from_list("FP32", (2,), [1.5, -2])
    return request_of(Infer(inputs={"x": x}, model_name=model, id="q", **fields))


def test_infer_with_and_without_a_deadline() -> None:
    async def test() -> None:
        backend = Doubler()
        async with serving(backend) as client:
            answer = outcome_of(await client("ModelInfer", doubling()))
            assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "q")
            assert answer.outputs["score"].values().tolist() == [3, -4]
            before = asyncio.get_running_loop().time()
            await client("ModelInfer", doubling(), timeout=20)
            after = asyncio.get_running_loop().time()
        assert backend.deadlines[0] is None
        assert backend.deadlines[1] is not None
        assert before + 10 < backend.deadlines[1] < after + 21  # gRPC rounds timeouts up

    run(test)


def test_typed_requests_are_answered_typed() -> None:
    async def test() -> None:
        request = METHODS["ModelInfer"].request(model_name="m")
        contents = {"fp32_contents": [1.5]}
        request.inputs.add(name="x", datatype="FP32", shape=[1], contents=contents)
        async with serving(Doubler()) as client:
            answer = await client("ModelInfer", request)
        assert list(answer.outputs[0].contents.fp32_contents) == [3.0]
        assert not answer.raw_output_contents

    run(test)


def test_every_other_method() -> None:
    async def test() -> None:
        backend = Doubler()
        async with serving(backend) as client:
            assert (await client("ServerLive")).live
            assert not (await client("ServerReady")).ready
            of_m = METHODS["ModelReady"].request(name="m", version="2")
            assert (await client("ModelReady", of_m)).ready
            assert not (await client("ModelReady")).ready
            assert list((await client("ServerMetadata")).extensions) == ["statistics"]
            metadata = await client("ModelMetadata", METHODS["ModelMetadata"].request(name="m"))
            assert list(metadata.inputs[0].shape) == [-1, 2]
            config = (await client("ModelConfig", METHODS["ModelConfig"].request(name="m"))).config
            assert [tensor.data_type for tensor in config.input] == [11, 13]  # FP32, STRING
            assert [tensor.optional for tensor in config.input] == [True, False]
            assert list(config.output[0].dims) == [-1]
            stats = await client("ModelStatistics", METHODS["ModelStatistics"].request(name="m"))
            assert stats.model_stats[0].inference_stats.queue.ns == 2**60
            assert stats.model_stats[0].batch_stats[0].batch_size == 16
            index = await client("RepositoryIndex", METHODS["RepositoryIndex"].request(ready=True))
            assert index.models[0].reason == "why"
            load = METHODS["RepositoryModelLoad"].request(model_name="m")
            load.parameters["version"].string_param = "3"
            await client("RepositoryModelLoad", load)
            unload = METHODS["RepositoryModelUnload"].request(model_name="m")
            await client("RepositoryModelUnload", unload)
        assert backend.asked == [
            ("index", True),
            ("load", "m", {"version": "3"}),
            ("unload", "m", {}),
        ]

    run(test)


@pytest.mark.parametrize(
    ("model", "code", "details"),
    [
        ("wrong", "INVALID_ARGUMENT", "column 'C1' is missing"),
        ("absent", "NOT_FOUND", "model 'absent' is not served"),
        ("busy", "RESOURCE_EXHAUSTED", "too many"),
        ("late", "DEADLINE_EXCEEDED", "its deadline passed"),
        ("broken", "INTERNAL", "worker 3 died"),
        ("long", "INVALID_ARGUMENT", "x" * 2000),
    ],
)
def test_errors_have_the_status_of_their_class(model: str, code: str, details: str) -> None:
    async def test() -> None:
        seen: list[tuple[str, str]] = []
        async with serving(Doubler(), answered=lambda *answer: seen.append(answer)) as client:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client("ModelInfer", doubling(model))
            assert caught.value.code().name == code
            assert caught.value.details() == details
            retry = [
                v for k, v in caught.value.trailing_metadata() if k == "grpc-retry-pushback-ms"
            ]
            assert retry == (["250"] if model == "busy" else [])
            await client("ServerLive")
        assert seen == [("ModelInfer", code), ("ServerLive", "OK")]

    run(test)


def test_errors_of_nobody_are_logged_and_told_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with serving(Doubler()) as client:
            with pytest.raises(grpc.aio.AioRpcError, match="the server failed; its log") as caught:
                await client("ModelInfer", doubling("bug"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "internals" not in str(caught.value.details())

    with caplog.at_level(logging.ERROR, logger="fastdlrm.serve.grpc_service"):
        run(test)
    assert "KeyError: 'internals'" in caplog.text


def test_damaged_requests_are_refused_with_words() -> None:
    async def test() -> None:
        async with serving(Doubler()) as client:
            with pytest.raises(grpc.aio.AioRpcError, match="not a message inference") as caught:
                await client("ModelInfer", b"\x0a\xff")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(test)


def test_large_requests_are_refused() -> None:
    async def test() -> None:
        async with serving(Doubler(), max_message_bytes=100) as client:
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
                await client("ModelInfer", doubling("m" * 200))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(test)


def test_a_stream_goes_on_after_an_error() -> None:
    async def test() -> None:
        requests = [doubling(), doubling("busy"), b"\x0a\xff", doubling(parameters=Parameters())]
        seen: list[tuple[str, str]] = []
        async with serving(Doubler(), answered=lambda *answer: seen.append(answer)) as client:
            call = client.channel.stream_stream(
                f"/{SERVICE}/ModelStreamInfer",
                request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
                response_deserializer=METHODS["ModelStreamInfer"].response.FromString,
            )
            answers = [answer async for answer in call(iter(requests))]
        assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
        assert answers[1].error_message == "too many"
        assert answers[1].infer_response.id == "q"
        assert "not a message" in answers[2].error_message
        for answer in (answers[0], answers[3]):
            assert outcome_of(answer.infer_response).outputs["score"].values().tolist() == [3, -4]
        codes = [code for _, code in seen]
        assert codes == ["OK", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "OK"]

    run(test)


def test_calls_need_the_token() -> None:
    async def test() -> None:
        def allows(found: bytes | None) -> bool:
            return found == b"Bearer s3cret"

        right = (("authorization", "Bearer s3cret"),)
        async with serving(Doubler(), allows=allows) as client:
            assert (await client("ServerLive")).live
            for metadata in (None, (("authorization", "Bearer other"),)):
                with pytest.raises(grpc.aio.AioRpcError, match="bearer token is missing") as caught:
                    await client("ModelInfer", doubling(), metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            await client("ModelInfer", doubling(), metadata=right)
            stream = client.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
            with pytest.raises(grpc.aio.AioRpcError, match="bearer token is missing"):
                await stream(iter([b""])).read()

    run(test)


def test_the_standard_health_service() -> None:
    async def test() -> None:
        backend = Doubler()
        async with serving(backend) as client:
            check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
            # HealthCheckRequest {service = 1}, HealthCheckResponse {status = 1}: 2 is NOT_SERVING
            name = SERVICE.encode()
            for request in (b"", b"\x0a" + bytes([len(name)]) + name):
                assert await check(request) == b"\x08\x02"
            backend.ready = True
            assert await check(b"") == b"\x08\x01"
            with pytest.raises(grpc.aio.AioRpcError, match="no service 'x'; ask for") as caught:
                await check(b"\x0a\x01x")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.aio.AioRpcError, match="not a message HealthCheckRequest"):
                await check(b"\x0a\xff")

    run(test)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_calls_over_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)

    async def test() -> None:
        server = make_server(GrpcService(Doubler()), max_message_bytes=1000)
        tls = (key.read_bytes(), certificate.read_bytes())
        port = listen(server, "localhost:0", tls)
        await server.start()
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", trusted) as channel:
            assert (await Client(channel)("ServerLive")).live
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await Client(channel)("ServerLive")
        await server.stop(None)

    run(test)


def test_a_port_that_is_taken_is_an_error() -> None:
    async def test() -> None:
        service = GrpcService(Doubler())
        first, second = (make_server(service, max_message_bytes=100) for _ in range(2))
        port = listen(first, "127.0.0.1:0")
        with pytest.raises(ServeError, match=rf"gRPC cannot listen at .*:{port}: .*is another"):
            listen(second, f"127.0.0.1:{port}")
        await first.stop(None)
        await second.stop(None)

    run(test)
