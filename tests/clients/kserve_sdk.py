"""What the SDK of KServe finds over REST and gRPC: a task on stdin, facts on stdout, both JSON.

Task: rest (base URL), grpc (host:port), model, columns (name to texts). Runs where kserve is
installed; tritonclient's gRPC part cannot live in the same process.
"""

import asyncio
import json
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main() -> None:
    """Ask over both protocols."""
    task = json.load(sys.stdin)
    facts = {"rest": await over_rest(task), "grpc": await over_grpc(task)}
    json.dump(facts, sys.stdout)


async def over_rest(task: dict) -> dict:
    """All that the REST client asks."""
    base, model, columns = task["rest"], task["model"], task["columns"]
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    headers: dict[str, str] = {}
    found = {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base),
        "model_ready": await client.is_model_ready(base, model),
        "json": scores(await client.infer(base, request(model, columns), model)),
        "binary": scores(
            await client.infer(
                base, request(model, columns, binary=True), model, response_headers=headers
            )
        ),
        "binary_answer": "inference-header-content-length" in {key.lower() for key in headers},
    }
    short = dict(list(columns.items())[:-1])
    unknown = "no-such-model"
    found["unknown_model"] = await problem(client.infer(base, request(unknown, columns), unknown))
    found["missing_input"] = await problem(client.infer(base, request(model, short), model))
    await client.close()
    return found


async def over_grpc(task: dict) -> dict:
    """All that the gRPC client asks."""
    model, columns = task["model"], task["columns"]
    client = InferenceGRPCClient(task["grpc"], retries=0)
    short = dict(list(columns.items())[:-1])
    found = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready(model),
        "scores": scores(await client.infer(request(model, columns, binary=False), timeout=30)),
        "raw": scores(await client.infer(request(model, columns, binary=True), timeout=30)),
        "unknown_model": await problem(client.infer(request("no-such-model", columns))),
        "missing_input": await problem(client.infer(request(model, short))),
    }
    await client.close()
    return found


def request(model: str, columns: dict[str, list[str]], binary: bool = False) -> InferRequest:
    """Texts as a request of the protocol."""
    inputs = []
    for name, texts in columns.items():
        tensor = InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, object), binary_data=binary)
        inputs.append(tensor)
    outputs = [RequestedOutput("score", parameters={"binary_data": True})] if binary else None
    return InferRequest(model, inputs, request_outputs=outputs)


def scores(answer) -> list[float]:
    """The output `score`."""
    found = next(output for output in answer.outputs if output.name == "score").as_numpy()
    return np.asarray(found, np.float32).tolist()


async def problem(call) -> list[str]:
    """Status and message of the error that a call must end with."""
    try:
        await call
    except httpx.HTTPStatusError as error:
        return [str(error.response.status_code), str(error)]
    except grpc.aio.AioRpcError as error:
        return [error.code().name, error.details() or ""]
    return ["", "no error"]


asyncio.run(main())
