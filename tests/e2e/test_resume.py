"""A killed run that is resumed ends exactly as an uninterrupted one."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.data.dataset import Dataset
from fastdlrm.train import matmul
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import ROOT, tiny_dataset, tiny_recipe

# 300 steps over several epochs, dropout on: the random state and the position in the data matter.
SETTINGS = (
    "train.num_epochs=9",
    "train.max_steps=300",
    "train.evaluate_every_steps=60",
    "train.checkpoint_every_steps=7",
    "train.global_batch_size=64",
    "model.dropout=0.3",
    "model.norm='batch'",
)

# Trains until a step, then kills itself some milliseconds later, wherever the loop is by then.
DRIVER = """
import os, signal, sys, threading
from pathlib import Path
from fastdlrm.data.dataset import Dataset
from fastdlrm.train import matmul
from fastdlrm.train.run import Run
from fastdlrm.train.trainer import Trainer
from tests.builders import tiny_recipe

data, run, kill_step, delay_s, *settings = sys.argv[1:]
armed = []

def kill(progress):
    if progress.step >= int(kill_step) and not armed:
        timer = threading.Timer(float(delay_s), os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
        armed.append(timer)

dataset = Dataset.open(Path(data))
Trainer(Run.resume(Path(run), tiny_recipe(*settings), dataset), dataset, kill).train()
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("resume"), 4000)


def _finish(folder: Path, dataset: Dataset, *settings: str) -> Path:
    result = Trainer(Run.resume(folder, tiny_recipe(*settings), dataset), dataset).train()
    assert result.is_finished
    return folder


def _begin(folder: Path, like: Path, dataset: Dataset, *settings: str) -> Run:
    """A run that computes as another does: how fast each way of products is, is measured anew."""
    run = Run.create(folder, tiny_recipe(*settings), dataset)
    if (like / matmul.FILE).is_file():
        shutil.copyfile(like / matmul.FILE, folder / matmul.FILE)
    return run


def _outcome(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[dict[str, object]]]:
    run = Run.open(folder)
    tensors = store.load(run.checkpoint_folder("last")).tensors
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return tensors, [{**r, "timing": None} for r in records]


def _assert_same(left: Path, right: Path) -> None:
    (tensors_a, records_a), (tensors_b, records_b) = _outcome(left), _outcome(right)
    assert records_a == records_b
    for group, named in tensors_a.items():
        assert named.keys() == tensors_b[group].keys()
        for name, tensor in named.items():
            assert torch.equal(tensor, tensors_b[group][name]), f"{group}/{name} differs"


def test_five_kills_change_nothing(dataset, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    whole = _finish(tmp_path / "whole", dataset, *SETTINGS)
    killed = tmp_path / "killed"
    _begin(killed, whole, dataset, *SETTINGS)
    for step in sorted(draw.sample(range(1, 290), 5)):
        arguments = [dataset.folder, killed, step, draw.uniform(0, 0.02), *SETTINGS]
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, *map(str, arguments)], check=False, cwd=ROOT
        )
        assert done.returncode == -signal.SIGKILL
    _finish(killed, dataset, *SETTINGS)
    _assert_same(whole, killed)


def test_sigterm_finishes_the_step_and_leaves_a_checkpoint(dataset, tmp_path):
    whole = _finish(tmp_path / "whole", dataset, *SETTINGS)
    folder = tmp_path / "stopped"
    run = _begin(folder, whole, dataset, *SETTINGS)

    def interrupt(progress):
        if progress.step == 100:
            signal.raise_signal(signal.SIGTERM)

    result = Trainer(run, dataset, interrupt).train()
    assert (result.step, result.is_finished) == (100, False)
    assert store.steps(folder / "checkpoints")[-1] == 100
    _finish(folder, dataset, *SETTINGS)
    _assert_same(whole, folder)


def test_resume_from_a_later_epoch_goes_on(dataset, tmp_path):
    """The reference loops forever when resumed in epoch 1 or later, and skips batches anew."""
    settings = (
        *SETTINGS[2:],
        "train.schedule={name='polynomial', warmup_steps=20, decay_start_step=20, decay_steps=200}",
    )
    whole = _finish(tmp_path / "whole", dataset, *settings, "train.num_epochs=4")
    _begin(tmp_path / "part", whole, dataset, *settings, "train.num_epochs=2")
    part = _finish(tmp_path / "part", dataset, *settings, "train.num_epochs=2")
    per_epoch = -(-dataset.manifest.splits["train"].num_rows // 64)
    assert store.steps(part / "checkpoints")[-1] == 2 * per_epoch
    _finish(part, dataset, *settings, "train.num_epochs=4")
    last = [Run.open(f).checkpoint_folder("last") for f in (whole, part)]
    assert [p.name for p in last] == [f"step-{4 * per_epoch:09d}"] * 2
    a, b = (store.load(p).tensors["model"] for p in last)
    assert all(torch.equal(a[name], b[name]) for name in a)
