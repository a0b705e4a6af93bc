"""What NVIDIA's tritonclient finds over HTTP: a task on stdin, facts on stdout, both JSON.

Task: url (host:port), model, columns (name to texts). Runs where tritonclient[http] is installed.
"""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    """Ask the server everything this client can ask."""
    task = json.load(sys.stdin)
    model, columns = task["model"], task["columns"]
    client = triton.InferenceServerClient(task["url"], concurrency=4, network_timeout=60)
    facts = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model, "1"),
        "unknown_ready": client.is_model_ready("no-such-model"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(model),
        "config": client.get_model_config(model),
        "index": client.get_model_repository_index(),
    }
    before = client.get_inference_statistics(model)["model_stats"][0]
    answers = {
        "binary": client.infer(model, tensors(columns)),
        "json": client.infer(
            model,
            tensors(columns, binary=False),
            outputs=[triton.InferRequestedOutput("score", binary_data=False)],
        ),
        "mixed": client.infer(
            model,
            tensors(columns, binary=False),
            outputs=[triton.InferRequestedOutput("score", binary_data=True)],
        ),
        "gzip": client.infer(
            model,
            tensors(columns),
            request_compression_algorithm="gzip",
            response_compression_algorithm="gzip",
        ),
        "scheduled": client.infer(
            model, tensors(columns), priority=1, timeout=30_000_000, request_id="q1"
        ),
        "asynchronous": client.async_infer(model, tensors(columns)).get_result(),
    }
    facts["scores"] = {name: scores(answer) for name, answer in answers.items()}
    facts["headers"] = {
        name: "binary_data_size" in json.dumps(answer.get_response())
        for name, answer in answers.items()
    }
    facts["answer"] = answers["scheduled"].get_response()
    best = client.infer(model, tensors(columns), parameters={"top_k": 3})
    facts["top"] = [best.as_numpy("item_index").tolist(), scores(best)]
    after = client.get_inference_statistics(model)["model_stats"][0]
    facts["counted"] = {
        "rows": after["inference_count"] - before["inference_count"],
        "success": after["inference_stats"]["success"]["count"]
        - before["inference_stats"]["success"]["count"],
    }
    short = dict(list(columns.items())[:-1])
    number = triton.InferInput(next(iter(columns)), [1], "FP64")
    number.set_data_from_numpy(np.array([np.inf]))
    first_rows = {name: texts[:1] for name, texts in columns.items()}
    one = [number, *tensors(first_rows)[1:]]
    facts["errors"] = {
        "unknown_model": problem(client.infer, "no-such-model", tensors(columns)),
        "unknown_version": problem(client.infer, model, tensors(columns), model_version="99"),
        "missing_input": problem(client.infer, model, tensors(short)),
        "infinite": problem(client.infer, model, one),
        "unknown_output": problem(
            client.infer, model, tensors(columns), outputs=[triton.InferRequestedOutput("logit")]
        ),
        "late": problem(client.infer, model, tensors(columns), timeout=1),
        "load_unknown": problem(client.load_model, "no-such-model"),
    }
    client.unload_model(model)
    facts["after_unload"] = {
        "ready": client.is_model_ready(model),
        "infer": problem(client.infer, model, tensors(columns)),
    }
    client.load_model(model)
    facts["after_load"] = {
        "ready": client.is_model_ready(model),
        "scores": scores(client.infer(model, tensors(columns))),
    }
    client.close()
    json.dump(facts, sys.stdout)


def tensors(columns: dict[str, list[str]], binary: bool = True) -> list[triton.InferInput]:
    """Texts as tensors."""
    found = []
    for name, texts in columns.items():
        tensor = triton.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, object), binary_data=binary)
        found.append(tensor)
    return found


def scores(answer: triton.InferResult) -> list[float]:
    """The output `score`: float32, which JSON's numbers hold exactly."""
    found = answer.as_numpy("score")
    assert found.dtype == np.float32
    return found.tolist()


def problem(call, *arguments, **options) -> list[str | None]:
    """Status and message of the error that a call must end with."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return [None, "no error"]


main()
