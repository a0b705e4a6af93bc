"""The same plain model behind MLServer, as its documentation says to write a runtime.

`mlserver_folder` writes the two settings files; MLServer lives in a virtual environment of its own.

Usage: python benchmarks/peers/mlserver_runtime.py RUN FOLDER --port 8011
       mlserver start FOLDER
"""

import argparse
import json
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent


def mlserver_folder(run: Path, folder: Path, port: int, workers: int) -> None:
    """Write a folder that `mlserver start` serves: settings, model settings, the runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("scorer.py", "mlserver_model.py"):
        shutil.copyfile(HERE / name, folder / name)
    settings = {
        "http_port": port,
        "grpc_port": port + 1000,
        "metrics_port": port + 2000,
        "parallel_workers": workers,
        "debug": False,
        "use_structured_logging": False,
    }
    model = {
        "name": "ctr",
        "implementation": "mlserver_model.PlainRuntime",
        "parameters": {"uri": str(run.resolve()), "version": "1"},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8011)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    mlserver_folder(args.run, args.folder, args.port, args.workers)


if __name__ == "__main__":
    main()
