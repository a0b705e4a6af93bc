"""Runs of another program's weights: they score as it does, train further, and go back."""

import copy
import json
import re

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.checkpoint.foreign import ForeignWeights
from fastdlrm.cli.main import app
from fastdlrm.data.dataset import Dataset
from fastdlrm.errors import CheckpointError, ConfigError, DataError
from fastdlrm.train.evaluate import scores
from fastdlrm.train.interchange import export_file, import_run
from fastdlrm.train.run import Run
from tests.builders import invoke, tiny_dataset, tiny_recipe
from tests.reference_dlrm import ReferenceDLRM, reference_file, save_reference

AS_REFERENCE = (
    "data.sparse.0.encoding='reference'",
    "data.sparse.0.min_count=1",
    "data.sparse.0.max_rows=0",
)
MODEL = ("model.embedding_dim=4", "model.bottom_mlp=[8,4]", "model.top_mlp=[16]")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """4 dense and 6 sparse features, numbered as the reference numbers them."""
    return tiny_dataset(tmp_path_factory.mktemp("interchange"), 900, *AS_REFERENCE)


@pytest.fixture(scope="module")
def reference(dataset):
    encoding = dataset.manifest.encoding
    rows = [encoding.tables[table.name].num_embeddings for table in dataset.schema.tables]
    return ReferenceDLRM(rows, [4, 8, 4], [16, 1]).eval()


@pytest.fixture(scope="module")
def file(reference, tmp_path_factory):
    return save_reference(reference, tmp_path_factory.mktemp("file") / "dlrm.pt")


@pytest.fixture(scope="module")
def run(file, dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    import_run(file, tiny_recipe(*AS_REFERENCE), dataset, folder)
    return Run.open(folder)


def oracle(reference, dataset, split):
    """Logits of the reference's model, in float64, by its own inputs."""
    rows = dataset.split(split)
    batch = rows.batch(slice(0, len(rows)))
    ids = list(batch.sparse.ids.long().view(6, -1))
    offsets = [torch.arange(len(column)) for column in ids]
    with torch.no_grad():
        return copy.deepcopy(reference).double()(batch.dense.double(), ids, offsets).logit()


def logits_of(model, dataset, split):
    pieces = scores(model, dataset.split(split), 128, torch.device("cpu"))
    return torch.cat([logits for logits, _ in pieces])


def test_an_imported_model_scores_as_the_reference(run, reference, dataset):
    found = logits_of(run.load_model("best"), dataset, "test")
    expected = oracle(reference, dataset, "test")
    assert expected.std() > 0.3
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_eval_predict_and_export_take_it(run, reference, dataset, tmp_path):
    log = dataset.folder.parent / "log" / "day_*"
    out = json.loads(invoke("eval", "--run", run.folder, "--data", dataset.folder, "--json"))
    assert 0 < out["log_loss"] < 10
    invoke("predict", "--run", run.folder, "--input", log, "--out", tmp_path / "scores.parquet")
    found = np.sort(pq.read_table(tmp_path / "scores.parquet")["score"].to_numpy())
    splits = ("train", "validation", "test")
    expected = torch.cat([oracle(reference, dataset, split) for split in splits]).sigmoid()
    np.testing.assert_allclose(found, np.sort(expected.numpy()), atol=1e-6)
    exported = invoke(
        "export", "--run", run.folder, "--data", dataset.folder, "--out", tmp_path / "m"
    )
    assert "model  " in exported


def test_it_is_trained_further(file, dataset, tmp_path):
    """With the very config it was imported by, and what the import says of it."""
    config = ("--config", "tiny", "--data", dataset.folder, "--out", tmp_path / "run")
    settings = [word for setting in AS_REFERENCE for word in ("--set", setting)]
    wider = ["--set", "model.top_mlp=[5]"]
    out = json.loads(
        invoke("import-checkpoint", "--file", file, *config, *settings, *wider, "--json")
    )
    assert out["overrides"] == ["model.top_mlp=[16]"]
    assert (out["naming"], out["model"]["interaction"]) == ("reference", "dot")
    said = [word for override in out["overrides"] for word in ("--set", override)]
    invoke("train", "--resume", *config, *settings, *wider, *said, "--set", "train.max_steps=5")
    run = Run.open(tmp_path / "run")
    before = ForeignWeights.open(file).tensors["top_mlp.0.weight"]
    after = run.load_model("last").state_tensors()["top_mlp.0.weight"]
    assert run.checkpoint_folder("last").name == "step-000000005"
    assert 0 < (after - before).abs().max() < 0.1


@pytest.mark.parametrize(("dense", "num_taken"), [("adagrad", 14), ("adam", 6)])
def test_adagrad_goes_on_from_the_files_sums(reference, dataset, tmp_path, dense, num_taken):
    """6 tables with a number a row, as row-wise Adagrad keeps them, and 8 weights and biases."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for k, (name, parameter) in enumerate(reference.named_parameters()):
        shape = parameter.shape[:1] if name.startswith("emb_l") else parameter.shape
        key = "momentum" if name.startswith("emb_l") else "sum"
        state[k] = {"step": 7, key: torch.rand(shape, generator=generator)}
    optimizer = {"param_groups": [{"lr": 0.1, "params": list(state)}], "state": state}
    torch.save(reference_file(reference) | {"opt_state_dict": optimizer}, tmp_path / "dlrm.pt")
    recipe = tiny_recipe(*AS_REFERENCE, f"train.dense_optimizer.name='{dense}'")
    result = import_run(tmp_path / "dlrm.pt", recipe, dataset, tmp_path / "run")
    assert (result.num_square_sums, result.num_tensors) == (num_taken, 14)
    groups = store.load(Run.open(tmp_path / "run").checkpoint_folder("last")).tensors
    found = groups["sparse_optimizer"]["tables.C2.square_sum"]
    torch.testing.assert_close(found, state[1]["momentum"], rtol=0, atol=0)
    if dense == "adagrad":
        found = groups["dense_optimizer"]["bottom_mlp.0.weight.square_sum"]
        torch.testing.assert_close(found, state[6]["sum"], rtol=0, atol=0)


def test_the_round_trip_is_exact(run, reference, tmp_path):
    """And the file is one that the reference's --load-model takes, on a torch of today."""
    text = invoke("export-checkpoint", "--run", run.folder, "--out", tmp_path / "back.pt")
    assert "back.pt" in text
    content = torch.load(tmp_path / "back.pt", weights_only=True)
    known = {"iter", "epoch", "nepochs", "nbatches", "nbatches_test", "train_loss", "total_loss"}
    assert known <= content.keys()
    again = ReferenceDLRM([table.num_embeddings for table in reference.emb_l], [4, 8, 4], [16, 1])
    again.load_state_dict(content["state_dict"])
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=0, atol=0)
    torch.optim.SGD(again.parameters(), lr=1.0).load_state_dict(content["opt_state_dict"])


def test_torchrecs_names_go_both_ways(run, dataset, tmp_path):
    path = tmp_path / "torchrec.pt"
    export_file(run, "best", "torchrec", path)
    result = import_run(path, tiny_recipe(*AS_REFERENCE), dataset, tmp_path / "run")
    assert result.naming == "torchrec"
    expected = run.load_model("best").state_tensors()
    for name, tensor in Run.open(tmp_path / "run").load_model("best").state_tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_rows_of_our_own_encoding_need_the_callers_word(file, reference, dataset, tmp_path):
    schema = dataset.schema
    tables = tuple(msgspec.structs.replace(t, encoding="vocabulary") for t in schema.tables)
    schema = msgspec.structs.replace(schema, tables=tables)
    manifest = msgspec.structs.replace(dataset.manifest, schema=schema)
    own = Dataset(dataset.folder, manifest)
    with pytest.raises(DataError, match=r"table 'C1' has encoding 'vocabulary', .*rows-are-ids"):
        import_run(file, tiny_recipe(), own, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    import_run(file, tiny_recipe(), own, tmp_path / "run", rows_are_ids=True)
    table = Run.open(tmp_path / "run").load_model("best").tables.table("C2")
    torch.testing.assert_close(table, reference.emb_l[1].weight.detach(), rtol=0, atol=0)


def test_a_file_that_does_not_fit_leaves_nothing(reference, dataset, tmp_path):
    state = dict(reference.state_dict())
    state["bot_l.0.weight"] = torch.ones(8, 13)
    torch.save(state, tmp_path / "dlrm.pt")
    with pytest.raises(CheckpointError, match=r"'bot_l\.0\.weight' has shape \(8, 13\), expected"):
        import_run(tmp_path / "dlrm.pt", tiny_recipe(*AS_REFERENCE), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_import_that_breaks_off_leaves_nothing(file, dataset, tmp_path):
    """A run without the weights would go on from drawn ones."""
    splits = {"test": dataset.manifest.splits["test"]}
    manifest = msgspec.structs.replace(dataset.manifest, splits=splits)
    with pytest.raises(DataError, match="train"):
        import_run(
            file, tiny_recipe(*AS_REFERENCE), Dataset(dataset.folder, manifest), tmp_path / "run"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_an_import_on_a_gpu_has_the_same_numbers(file, run, dataset, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    import_run(file, tiny_recipe(*AS_REFERENCE, "train.device='cuda'"), dataset, tmp_path / "run")
    expected = run.load_model("best").state_tensors()
    for name, tensor in Run.open(tmp_path / "run").load_model("best").state_tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_wrong_targets_are_refused(run, file, dataset, tmp_path):
    with pytest.raises(DataError, match="exists and is not an empty folder; remove it or name"):
        import_run(file, tiny_recipe(*AS_REFERENCE), dataset, run.folder)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}: a folder; name the file")):
        export_file(run, "best", "reference", tmp_path)
    with pytest.raises(ConfigError, match="--to 'caffe2': reference or torchrec is allowed"):
        app(
            ["export-checkpoint", "--run", str(run.folder), "--to", "caffe2", "--out", "x"],
            standalone_mode=False,
        )
