"""What NVIDIA's tritonclient finds over gRPC: a task on stdin, facts on stdout, both JSON.

Task: url (host:port), model, columns (name to texts). Runs where tritonclient[grpc] is installed.
"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    """Ask the server everything this client can ask."""
    task = json.load(sys.stdin)
    model, columns = task["model"], task["columns"]
    client = triton.InferenceServerClient(task["url"])
    facts = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "unknown_ready": client.is_model_ready("no-such-model"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }
    best = client.infer(model, tensors(columns), parameters={"top_k": 3})
    facts["scores"] = {
        "plain": scores(client.infer(model, tensors(columns), client_timeout=60)),
        "compressed": scores(client.infer(model, tensors(columns), compression_algorithm="gzip")),
        "scheduled": scores(client.infer(model, tensors(columns), priority=1, timeout=30_000_000)),
        "asynchronous": asynchronous(client, model, columns),
    }
    facts["top"] = [best.as_numpy("item_index").tolist(), scores(best)]
    facts["stream"] = stream(client, model, columns)
    statistics = client.get_inference_statistics(model, as_json=True)
    facts["statistics"] = statistics["model_stats"][0]
    short = dict(list(columns.items())[:-1])
    wide = {name: (texts * 10_000)[:10_000] for name, texts in columns.items()}
    facts["errors"] = {
        "unknown_model": problem(client.infer, "no-such-model", tensors(columns)),
        "missing_input": problem(client.infer, model, tensors(short)),
        "late": problem(client.infer, model, tensors(columns), timeout=1),
        "deadline": problem(client.infer, model, tensors(wide), client_timeout=0.002),
        "load_unknown": problem(client.load_model, "no-such-model"),
    }
    client.unload_model(model)
    facts["after_unload"] = {"ready": client.is_model_ready(model)}
    client.load_model(model)
    facts["after_load"] = {
        "ready": client.is_model_ready(model),
        "scores": scores(client.infer(model, tensors(columns))),
    }
    client.close()
    json.dump(facts, sys.stdout)


def tensors(columns: dict[str, list[str]]) -> list[triton.InferInput]:
    """Texts as tensors."""
    found = []
    for name, texts in columns.items():
        tensor = triton.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, object))
        found.append(tensor)
    return found


def scores(answer: triton.InferResult) -> list[float]:
    """The output `score`: float32, which JSON's numbers hold exactly."""
    found = answer.as_numpy("score")
    assert found.dtype == np.float32
    return found.tolist()


def asynchronous(
    client: triton.InferenceServerClient, model: str, columns: dict[str, list[str]]
) -> list[float]:
    """Scores that came to a callback."""
    answers: queue.Queue = queue.Queue()
    client.async_infer(model, tensors(columns), lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=60)
    if error is not None:
        raise error
    return scores(result)


def stream(
    client: triton.InferenceServerClient, model: str, columns: dict[str, list[str]]
) -> list[dict]:
    """Answers of one stream: a right request, a wrong one, a right one."""
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    short = dict(list(columns.items())[:-1])
    found = []
    for number, sent in enumerate((columns, short, columns)):
        client.async_stream_infer(model, tensors(sent), request_id=f"s{number}")
        result, error = answers.get(timeout=60)
        if error is None:
            found.append({"id": result.get_response().id, "scores": scores(result)})
        else:
            found.append({"error": error.message()})
    client.stop_stream()
    return found


def problem(call, *arguments, **options) -> list[str | None]:
    """Status and message of the error that a call must end with."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return [None, "no error"]


main()
