"""`fastdlrm import-checkpoint`: another program's weights + dataset -> run."""

from pathlib import Path
from typing import Annotated

import typer

from fastdlrm.cli.options import Config, Json, Overrides, emit


def import_checkpoint(
    file: Annotated[Path, typer.Option(help="What dlrm_s_pytorch or a TorchRec script saved.")],
    config: Config,
    data: Annotated[Path, typer.Option(help="Dataset folder made by `fastdlrm prepare`.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    rows_are_ids: Annotated[
        bool,
        typer.Option("--rows-are-ids", help="Row r is id r, whatever the dataset's encoding."),
    ] = False,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Make a run of weights trained by dlrm_s_pytorch.py or TorchRec's DLRM or DLRM_DCN.

    The file says what the model is; the config says how to train it further. Nothing in the file is
    run: one that holds more than tensors and numbers is refused.

        fastdlrm import-checkpoint --file dlrm.pt --config criteo-kaggle --data DATA --out RUN
    """
    from fastdlrm.config import load_config, to_tree
    from fastdlrm.data.dataset import Dataset
    from fastdlrm.train.interchange import import_run
    from fastdlrm.train.recipe import Recipe

    recipe = load_config(config, Recipe, overrides or ())
    dataset = Dataset.open(data)
    result = import_run(
        file,
        recipe,
        dataset,
        out,
        rows_are_ids=rows_are_ids,
        on_message=lambda message: typer.echo(message, err=True),
    )

    def human() -> dict[str, object]:
        shape = to_tree(result.model)
        keys = ("interaction", "embedding_dim", "bottom_mlp", "top_mlp")
        further = " ".join(f"--set '{override}'" for override in result.overrides)
        return {
            "names of": result.naming,
            **{key: shape[key] for key in keys},
            "rows": result.num_embeddings,
            "Adagrad goes on from the file's sums": f"{result.num_square_sums} of "
            f"{result.num_tensors} tensors",
            "to train further": f"train --resume with the same config {further}".rstrip(),
            "folder": result.run,
        }

    emit(result, json, human)
