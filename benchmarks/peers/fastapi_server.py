"""A plain FastAPI + PyTorch server of one model, speaking KServe v2 in JSON.

The usual first server: Pydantic models, a synchronous handler in FastAPI's thread pool, torch with
its own number of threads, no batching. Needs `fastapi` (not among the project's dependencies).

Usage: python benchmarks/peers/fastapi_server.py RUN --port 8010
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from scorer import PlainScorer


class Input(BaseModel):
    """One column of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(BaseModel):
    """KServe v2's request."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[Input]


def application(scorer: PlainScorer) -> FastAPI:
    """The routes that a client of KServe v2 needs."""
    app = FastAPI()
    metadata = {
        "name": "ctr",
        "versions": ["1"],
        "platform": "pytorch",
        "inputs": [
            *({"name": f.column, "datatype": "FP64", "shape": [-1]} for f in scorer.dense),
            *({"name": f.column, "datatype": "BYTES", "shape": [-1]} for f in scorer.sparse),
        ],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1]}],
    }

    @app.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2/models/ctr")
    def model() -> dict[str, Any]:
        return metadata

    @app.post("/v2/models/ctr/infer")
    def infer(request: InferRequest) -> dict[str, Any]:
        num_rows = max(column.shape[0] for column in request.inputs)
        columns = {
            column.name: column.data * (num_rows if len(column.data) == 1 else 1)
            for column in request.inputs
        }
        scores = scorer.score(columns)
        output = {"name": "score", "datatype": "FP32", "shape": [len(scores)], "data": scores}
        answer = {"model_name": "ctr", "model_version": "1", "outputs": [output]}
        return answer if request.id is None else {**answer, "id": request.id}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--port", type=int, default=8010)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    uvicorn.run(application(PlainScorer(args.run)), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
