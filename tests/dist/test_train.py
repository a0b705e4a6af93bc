"""`fastdlrm train` on several ranks, as a user types it."""

import json
import os
import random
import shutil
import signal
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdlrm.checkpoint import store
from fastdlrm.config import load_config
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.loader import Loader
from fastdlrm.data.prepare import prepare
from fastdlrm.model.layout import table_sizes
from fastdlrm.parallel import plan as plans
from fastdlrm.parallel.plan import ShardingPlan, write_plan
from fastdlrm.parallel.world import World
from fastdlrm.train.recipe import Recipe
from fastdlrm.train.run import Run
from fastdlrm.train.sharding import shard
from fastdlrm.train.trainer import Trainer
from tests.builders import ROOT, fastdlrm, tiny_dataset
from tests.dist.commands import (
    LIMIT_S,
    Said,
    command,
    last_step,
    rank_processes,
    records,
    started,
    wait_until,
)
from fastdlrm.parallel.launch import free_port
from tests.dist.ranks import Ranks

# Of the numbers of one process: ranks sum in another order, and 100 steps magnify the rounding.
LOSS, METRIC = 1e-4, 1e-3

SETTINGS = ("train.log_every_steps=1", "train.num_epochs=2", "train.global_batch_size=90")

BAGS = """
[data.source]
format = "csv"
columns = ["label", "x", "item", "seen", "weight"]

[data.label]
column = "label"
positive = ["1"]
negative = ["0"]

[[data.dense]]
columns = ["x"]
transform = "none"

[[data.sparse]]
columns = ["item"]
table = "item"
min_count = 1

[[data.sparse]]
columns = ["seen"]
bag = true
separator = " "
weight_column = "weight"
table = "item"
min_count = 1

[data.split]
"""


def write_bags(folder: Path) -> tuple[Path, Dataset]:
    """A log in which an item seen before is clicked more often: its config and its dataset."""
    draw = np.random.default_rng(5)
    lines = []
    for _ in range(3000):
        item = draw.integers(30)
        seen = draw.integers(30, size=draw.integers(0, 5))
        weights = draw.random(len(seen)).round(2)
        label = int(draw.random() < (0.7 if item in seen or item < 8 else 0.2))
        bag, of_bag = (" ".join(map(str, part)) for part in (seen, weights))
        lines.append(f"{label},{draw.normal():.3f},{item},{bag},{of_bag}\n")
    log = folder / "log.csv"
    log.write_text("".join(lines))
    tiny = (ROOT / "src" / "fastdlrm" / "presets" / "tiny.toml").read_text()
    head, rest = tiny.split("[data.source]")
    config = folder / "bags.toml"
    config.write_text(head + BAGS + rest.split("[data.split]")[1])
    prepare([log], load_config(str(config), Recipe, ()).data, folder / "data", memory_bytes=2**30)
    return config, Dataset.open(folder / "data")


class Work:
    """A dataset, its config, and what one process learns from it."""

    def __init__(self, folder: Path, config: str, dataset: Dataset) -> None:
        self.folder = folder
        self.config = config
        self.dataset = dataset
        self.whole = folder / "whole"
        recipe = load_config(config, Recipe, SETTINGS)
        assert Trainer(Run.create(self.whole, recipe, dataset), dataset).train().is_finished

    def arguments(self, run: Path, *more: str) -> tuple[str, ...]:
        """Of `fastdlrm train`."""
        settings = [word for key in SETTINGS for word in ("--set", key)]
        places = ("--data", str(self.dataset.folder), "--out", str(run))
        return ("train", "--config", self.config, *places, *settings, *more)

    def plan(self, world_size: int, *shardings: str) -> str:
        """A plan's file; the tables take the shardings in turn."""
        sizes = table_sizes(self.dataset.schema, self.dataset.manifest.encoding)
        ranks = list(range(world_size))
        makers = {
            "table_wise": lambda rows: plans.table_wise(rows, 4, ranks[-1]),
            "row_wise": lambda rows: plans.row_wise(rows, 4, ranks[::-1]),
            "column_wise": lambda rows: plans.column_wise(rows, 4, ranks),
            "data_parallel": lambda rows: plans.data_parallel(),
        }
        tables = {
            name: makers[sharding](rows)
            for (name, rows), sharding in zip(sizes.items(), cycle(shardings), strict=False)
        }
        path = self.folder / f"plan-{world_size}-{'-'.join(shardings)}.json"
        made = ShardingPlan(
            world_size=world_size, embedding_dim=4, num_embeddings=sizes, tables=tables
        )
        write_plan(path, made)
        return str(path)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("single")
    return Work(folder, "tiny", tiny_dataset(folder, 4000))


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("bags")
    config, dataset = write_bags(folder)
    return Work(folder, str(config), dataset)


def train(ranks: Ranks, size: int, arguments: tuple[str, ...]) -> list[Said]:
    """Train to the end; the first rank alone speaks."""
    said = ranks.run(command, size, *arguments)
    assert [one.code for one in said] == [0] * size, said
    assert [one.out for one in said[1:]] == [""] * (size - 1)
    assert [one.err for one in said[1:]] == [""] * (size - 1)
    return said


def assert_as_one_process(run: Path, work: Work) -> None:
    """The same records, losses step by step: a row lost or seen twice would show in them."""
    expected = records(work.whole)
    at = {(r["step"], r["kind"]): r["values"] for r in records(run)}
    assert [(r["step"], r["kind"]) for r in expected if r["kind"] == "train"] == [
        key for key in at if key[1] == "train"
    ]
    for record in expected:
        values = at[record["step"], record["kind"]]
        if record["kind"] == "train":
            assert values["loss"] == pytest.approx(record["values"]["loss"], rel=LOSS)
            assert values["epoch"] == record["values"]["epoch"]
            continue
        assert values["num_samples"] == record["values"]["num_samples"]
        for name in ("auc", "log_loss", "ne", "calibration", "pr_auc"):
            assert values[name] == pytest.approx(record["values"][name], rel=METRIC), name


def test_a_user_trains_on_four_processes(single: Work, tmp_path: Path) -> None:
    """One log, one result, no word of torch's."""
    log, mllog = tmp_path / "log", tmp_path / "mllog"
    unreachable = ("--set", "train.target_metric_value=1.0", "--set", "mlperf={organization='us'}")
    more = ("--nproc", "4", "--json", "--mllog", str(mllog), *unreachable)
    arguments = single.arguments(tmp_path / "run", *more)
    with started("fastdlrm", *arguments, log=log) as process:
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log.read_text()
    assert json.loads(out)["is_finished"]
    assert_as_one_process(tmp_path / "run", single)
    lines = log.read_text().splitlines()
    steps = [line for line in lines if line.startswith("step ") and "loss" in line]
    assert len(steps) == json.loads(out)["step"]
    others = [line.split()[0] for line in lines if not line.startswith("step ")]
    assert others == ["memory", "float32", "a"]  # held, products, predicted and measured
    events = [json.loads(line.partition(" ")[2]) for line in mllog.read_text().splitlines()]
    ends = [event["metadata"]["status"] for event in events if event["key"] == "run_stop"]
    assert ends == ["aborted"]


@pytest.mark.parametrize("size", [2, 4])
def test_bags_are_learned_alike(ranks: Ranks, bags: Work, tmp_path: Path, size: int) -> None:
    train(ranks, size, bags.arguments(tmp_path / "run"))
    assert_as_one_process(tmp_path / "run", bags)


@pytest.fixture(scope="module")
def stopped(ranks: Ranks, single: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four ranks up to the middle of its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    plan = ("plan", "--config", "tiny", "--data", single.dataset.folder, "--ranks", 4)
    fastdlrm(*plan, "--topology", "cpu", "--out", folder / "plan.json")
    more = ("--set", "train.max_steps=47", "--plan", str(folder / "plan.json"))
    train(ranks, 4, single.arguments(folder / "run", *more))
    assert store.steps(folder / "run" / "checkpoints")[-1] == 47
    return folder / "run"


@pytest.mark.parametrize(
    ("size", "shardings"),
    [
        (1, ()),
        (2, ("row_wise", "column_wise", "data_parallel")),
        (3, ("column_wise", "row_wise", "table_wise")),
    ],
)
def test_other_ranks_and_another_plan_go_on(
    ranks: Ranks,
    single: Work,
    stopped: Path,
    tmp_path: Path,
    size: int,
    shardings: tuple[str, ...],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    more = ("--plan", single.plan(size, *shardings)) if shardings else ()
    said = train(ranks, size, single.arguments(run, "--resume", *more))
    assert "resumed at step 47" in said[0].err
    assert_as_one_process(run, single)


def test_one_process_reads_what_four_have_learned(
    ranks: Ranks, single: Work, stopped: Path
) -> None:
    """The metrics that the four had of their tables are those of the checkpoint's."""
    place = ("--run", str(stopped), "--data", str(single.dataset.folder), "--split", "validation")
    said = ranks.run(command, 1, "eval", *place, "--checkpoint", "47", "--json")[0]
    found, expected = json.loads(said.out), records(stopped)[-1]
    assert (expected["step"], expected["kind"]) == (47, "validation")
    for name in ("auc", "num_samples", "num_positives", "accuracy"):
        assert found[name] == expected["values"][name], name
    for name in ("log_loss", "ne", "calibration"):
        assert found[name] == pytest.approx(expected["values"][name], rel=1e-6), name


def batches_of_rank(folder: Path, data: Path) -> list[torch.Tensor]:
    """The dense features of each batch of an epoch that a trainer's rank takes."""
    dataset = Dataset.open(data)
    recipe = load_config("tiny", Recipe, SETTINGS)
    with World.of_environment() as world:
        sharding = shard(recipe, dataset, world, torch.device("cpu"))
        run = world.on_first(lambda: Run.create(folder, recipe, dataset))
        trainer = Trainer(run, dataset, world=world, sharding=sharding)
        return [batch.dense.clone() for batch in trainer._loader.epoch(1)]


def test_all_ranks_take_parts_of_one_batch(ranks: Ranks, single: Work, tmp_path: Path) -> None:
    """The reference's ranks draw orders of their own, as making tables uses their random state."""
    parts = ranks.run(batches_of_rank, 4, tmp_path / "run", single.dataset.folder)
    rows = single.dataset.split("train")
    batches = list(Loader(rows, 90, seed=1).epoch(1))
    assert [len(of_rank) for of_rank in parts] == [len(batches)] * 4
    for batch, *of_ranks in zip(batches, *parts, strict=True):
        assert torch.equal(torch.cat(of_ranks), batch.dense)


def mistakes(work: Work, full: Path) -> dict[str, tuple[int, tuple[str, ...], str]]:
    """By name: exit code, arguments, and what is said."""
    new = full.parent / "new"
    huge = ("--set", "train.dense_optimizer={name='sgd', learning_rate=1e30}")
    return {
        "no plan": (1, work.arguments(new, "--plan", "none.json"), "No such file or directory; correct"),
        "no json": (1, work.arguments(new, "--plan", str(ROOT / "Makefile")), "not a plan"),
        "world": (1, work.arguments(new, "--plan", work.plan(3, "row_wise")), "made for 3 ranks"),
        "norm": (2, work.arguments(new, "--set", "model.norm='batch'"), "would normalise by its"),
        "key": (2, work.arguments(new, "--set", "train.epochs=1"), "epochs"),
        "data": (1, work.arguments(new, "--data", str(full)), "manifest"),
        "full": (2, work.arguments(full), "not empty; pass --resume"),
        "other": (2, work.arguments(full, "--resume", "--set", "seed=9"), "seed differs"),
        "nan": (1, work.arguments(new, *huge), "training loss is NaN at step"),
    }


def test_a_mistake_is_told_once(ranks: Ranks, single: Work, stopped: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    shutil.copytree(stopped, full)
    for name, (code, arguments, text) in mistakes(single, full).items():
        said = ranks.run(command, 2, *arguments)
        assert [one.code for one in said] == [code, code], (name, said)
        errors = [line for one in said for line in one.err.splitlines() if "error" in line]
        assert len(errors) == 1, (name, said)
        assert errors[0].startswith("error: "), (name, said)
        assert text in errors[0], (name, said)


def test_the_launcher_adds_nothing_to_a_mistake(single: Work, stopped: Path) -> None:
    text = fastdlrm(*single.arguments(stopped, "--nproc", "2"), code=2)
    assert text.startswith(f"error: --out {stopped}: not empty; pass --resume")
    assert len(text.splitlines()) == 1


def test_a_killed_rank_ends_all_and_sigterm_leaves_a_checkpoint(
    ranks: Ranks, single: Work, tmp_path: Path
) -> None:
    """The run is killed, goes on, is asked to stop, and goes on to the same end."""
    run, log = tmp_path / "run", tmp_path / "log"
    more = ("--nproc", "2", "--set", "train.checkpoint_every_steps=5")
    with started("fastdlrm", *single.arguments(run, *more), log=log) as process:
        wait_until(process, lambda: store.steps(run / "checkpoints") != [])
        os.kill(rank_processes(process.pid)[1], signal.SIGKILL)
        assert process.wait(LIMIT_S) == 1
    text = log.read_text()
    assert "error: rank 1 was ended by SIGKILL, the others with it; run it again" in text
    assert "Traceback" not in text
    first = store.steps(run / "checkpoints")[-1]
    with started("fastdlrm", *single.arguments(run, "--resume", *more), log=log) as process:
        wait_until(process, lambda: "loss" in log.read_text())
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=LIMIT_S)
    text = log.read_text()
    assert process.returncode == 0, text
    assert "by a signal; continue with --resume" in out
    assert f"resumed at step {first} " in text
    assert not [word for word in ("Traceback", "error: ", "Warning") if word in text]
    assert store.steps(run / "checkpoints")[-1] == last_step(run) > first
    train(ranks, 2, single.arguments(run, "--resume", *more[2:]))
    assert_as_one_process(run, single)


@pytest.mark.slow
def test_torch_distributed_launch_works(single: Work, tmp_path: Path) -> None:
    """The reference dies of --local-rank here, and aborts as its ranks part."""
    log = tmp_path / "log"
    launcher = ("torch.distributed.launch", "--nproc-per-node", "2", "-m", "fastdlrm")
    more = ("--set", "train.max_steps=3", "--json")
    with started(*launcher, *single.arguments(tmp_path / "run", *more), log=log) as process:
        out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, log.read_text()
    assert json.loads(out)["step"] == 3
    for word in ("No such option", "SIGABRT", "destroy_process_group", "terminate called"):
        assert word not in log.read_text()


def steps_of_start(log: Path, start: int) -> int:
    """How many steps are logged since the ranks were started for the n-th time, from 0."""
    _, *starts = log.read_text().split("memory on the host:")
    return starts[start].count("  loss ") if len(starts) > start else 0


@pytest.mark.slow
def test_torchrun_restarts_what_is_killed(single: Work, tmp_path: Path) -> None:
    """Five times a random rank is killed at a random moment; nobody but torchrun looks after it."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    run, log = tmp_path / "run", tmp_path / "log"
    launcher = "torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 5 -m fastdlrm"
    arguments = single.arguments(run, "--set", "train.checkpoint_every_steps=2")
    with started(*launcher.split(), *arguments, log=log) as process:
        for kill in range(5):
            wait_until(process, lambda kill=kill: steps_of_start(log, kill) > 0)
            step = last_step(run) + draw.randint(4, 9)
            wait_until(process, lambda step=step: last_step(run) >= step)
            os.kill(draw.choice(rank_processes(process.pid)), signal.SIGKILL)
        out, _ = process.communicate(timeout=LIMIT_S)
    text = log.read_text()
    assert process.returncode == 0, text
    assert "resumed at step" in text
    assert "stopped" not in out
    assert_as_one_process(run, single)


@pytest.mark.slow
def test_machines_start_again_together(single: Work, tmp_path: Path) -> None:
    """Two agents, as of two machines; only one of them counts the failure of its rank."""
    run, logs = tmp_path / "run", [tmp_path / "log-0", tmp_path / "log-1"]
    place = f"--nnodes 2 --rdzv-backend c10d --rdzv-endpoint localhost:{free_port()} --rdzv-id two"
    launcher = f"torch.distributed.run {place} --nproc-per-node 1 --max-restarts 3 -m fastdlrm"
    arguments = single.arguments(run, "--set", "train.checkpoint_every_steps=2")
    with (
        started(*launcher.split(), *arguments, log=logs[0]) as first,
        started(*launcher.split(), *arguments, log=logs[1]) as second,
    ):
        wait_until(first, lambda: store.steps(run / "checkpoints") != [])
        [pid] = rank_processes(second.pid)
        os.kill(pid, signal.SIGKILL)
        for process in (first, second):
            process.communicate(timeout=LIMIT_S)
    text = "".join(log.read_text() for log in logs)
    assert (first.returncode, second.returncode) == (0, 0), text
    assert "resumed at step" in text
    assert "not empty" not in text
    assert_as_one_process(run, single)
