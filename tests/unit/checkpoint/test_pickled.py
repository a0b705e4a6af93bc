"""A file of another program: what is read of it, and that nothing in it is run."""

import pickle
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from fastdlrm.checkpoint.pickled import read_pickled
from fastdlrm.errors import CheckpointError
from tests.reference_dlrm import ReferenceDLRM, reference_file, save_reference


@pytest.fixture
def model():
    return ReferenceDLRM([5, 3], [4, 2], [3, 1])


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (subprocess.check_call, (["touch", str(self.path)],))


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_of_the_reference_is_read(model, tmp_path, is_zip):
    """Its metrics are numbers of numpy, which torch.load refuses by default."""
    path = tmp_path / "dlrm.pt"
    torch.save(reference_file(model), path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert_equal(read_pickled(path).tensors, model.state_dict())


def test_the_numbers_of_numpy_1_are_read(model, tmp_path):
    """numpy 1 wrote them under the name of another module."""
    path = tmp_path / "dlrm.pt"
    torch.save(reference_file(model), path)
    old = tmp_path / "old.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            assert name.endswith("data.pkl") == (b"numpy._core.multiarray" in content)
            target.writestr(
                name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            )
    assert_equal(read_pickled(old).tensors, model.state_dict())


def test_a_bare_state_dict_is_read(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    assert_equal(read_pickled(tmp_path / "bare.pt").tensors, model.state_dict())


def test_numbers_are_mapped_not_read(tmp_path):
    """What is written into the file after it was opened is seen: nothing was copied."""
    path = tmp_path / "large.pt"
    torch.save({"emb_l.0.weight": torch.ones(2**16, 4)}, path)
    table = read_pickled(path).tensors["emb_l.0.weight"]
    content = path.read_bytes()
    ones, twos = (np.full(2**18, number, "<f4").tobytes() for number in (1, 2))
    with path.open("r+b") as file:
        file.seek(content.index(ones))
        file.write(twos)
    torch.testing.assert_close(table, torch.full((2**16, 4), 2.0))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_what_a_file_would_run_is_not_run(model, tmp_path, is_zip):
    path, touched = tmp_path / "evil.pt", tmp_path / "touched"
    content = reference_file(model) | {"test_auc": Touch(touched)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    message = (
        r"evil.pt: would call \w+.check_call; only tensors and numbers"
        if is_zip
        else ("evil.pt: not a file of tensors and numbers")
    )
    with pytest.raises(CheckpointError, match=message):
        read_pickled(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)  # it would have been
    assert touched.exists()


@pytest.mark.parametrize(
    "value",
    [np.array([1.0, 2.0]), np.datetime64("2020-01-01"), np.array([None])[0:1]],
    ids=["array", "time", "objects"],
)
def test_of_numpy_only_plain_numbers_are_allowed(model, tmp_path, value):
    torch.save(reference_file(model) | {"test_auc": value}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"would call numpy|not a file of tensors and numbers"
    ):
        read_pickled(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, no state dict; save model.state_dict()"),
        ({}, "holds dict, no state dict"),
        ({"a": 1.0}, "'a' is float; a state dict of floating-point tensors is allowed"),
        ({"a": torch.tensor([1])}, "'a' is torch.int64; a state dict of floating-point"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is torch.float32; a state dict of floating"),
        ({3: torch.ones(1)}, "3 is torch.float32; a state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        read_pickled(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_a_damaged_file_is_refused_or_read(model, tmp_path, is_zip):
    """A few bytes altered, of a file of which most bytes are a pickle."""
    path, rng = tmp_path / "a.pt", np.random.default_rng(1)
    torch.save(reference_file(model), path, _use_new_zipfile_serialization=is_zip)
    whole = np.fromfile(path, np.uint8)
    num_refused = 0
    for _ in range(60):
        altered = whole.copy()
        altered[rng.integers(len(whole), size=4)] = rng.integers(256, size=4)
        altered.tofile(path)
        try:
            read_pickled(path)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 20


@pytest.mark.parametrize("optimizer", [3, {"state": {}}, {"param_groups": [{}], "state": {}}])
def test_an_optimizer_of_another_kind_is_refused(model, tmp_path, optimizer):
    torch.save(reference_file(model) | {"opt_state_dict": optimizer}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"its opt_state_dict is no optimizer's: \w+Error"):
        read_pickled(tmp_path / "a.pt")


def test_what_adagrad_kept_is_read_by_parameter(model, tmp_path):
    """SGD keeps nothing; an optimizer of some of the parameters does not say of which."""
    assert read_pickled(save_reference(model, tmp_path / "sgd.pt")).square_sums == {}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2)
    for parameters, is_whole in ((model.parameters(), True), (model.bot_l.parameters(), False)):
        optimizer = torch.optim.Adagrad(parameters, lr=0.1)
        optimizer.step()
        content = reference_file(model) | {"opt_state_dict": optimizer.state_dict()}
        torch.save(content, tmp_path / "a.pt")
        found = read_pickled(tmp_path / "a.pt").square_sums
        assert list(found) == (list(model.state_dict()) if is_whole else [])
        for name, tensor in found.items():  # 2 squared
            torch.testing.assert_close(tensor, torch.full_like(model.state_dict()[name], 4))


def test_what_torch_did_not_save_is_refused(model, tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(
        CheckpointError, match=r"a\.pt: no such file; name one that torch.save wrote"
    ):
        read_pickled(path)
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        other.writestr("text", "x")
    for name, content in {
        "a.pt": whole[: len(whole) // 2],
        "c.pt": b"x" * 100,
        "d.pt": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    for name in ("a.pt", "b.pt", "c.pt", "d.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: not a file of tensors and numbers"):
            read_pickled(tmp_path / name)
