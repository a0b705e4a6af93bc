"""What tests of exporting share: a small run that was trained for a step."""

import dataclasses

import msgspec
import pytest

from fastdlrm.contracts.manifest import MANIFEST, sha256_of
from fastdlrm.data.dataset import Dataset
from fastdlrm.export.write import Source
from fastdlrm.model.build import build_dlrm
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_dataset, tiny_recipe


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run and its dataset."""
    folder = tmp_path_factory.mktemp("exported")
    dataset = tiny_dataset(folder)
    run = Run.create(folder / "run", tiny_recipe("train.max_steps=20"), dataset)
    Trainer(run, dataset).train()
    return run, dataset


@pytest.fixture
def source(trained):
    """What is exported of it, or of the run that a module's own `trained` gives."""
    run, _ = trained
    return Source(
        model=run.load_model("last"),
        config=run.recipe.model,
        schema=run.manifest.schema,
        encoding=run.manifest.encoding,
        vocabularies=run.folder,
        source=run.recipe.data.source,
        matmul="default",
        step=run.recipe.train.max_steps,
        run_sha256=sha256_of(run.folder / MANIFEST),
    )


@pytest.fixture
def narrow(source):
    """The same with a table of 1 and one of 2 columns of 4, as drawn."""
    first, second = list(source.model.tables.num_embeddings)[:2]
    config = msgspec.structs.replace(source.config, table_dims={first: 2, second: 1})
    model = build_dlrm(config, source.schema, source.encoding, seed=1)
    return dataclasses.replace(source, config=config, model=model)


@pytest.fixture
def splits(trained):
    """Validation and test rows, as `export` takes them."""
    _, dataset = trained
    assert isinstance(dataset, Dataset)
    return {"validation": dataset.split("validation"), "test": dataset.split("test")}
