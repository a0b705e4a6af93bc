"""Checkpoints of several ranks: saved under one plan, loaded by other ranks under another."""

import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from fastdlrm.checkpoint import store, tensor_file
from fastdlrm.checkpoint.saver import Saver
from fastdlrm.errors import CheckpointError
from fastdlrm.parallel import plan
from fastdlrm.parallel.plan import TablePlan
from fastdlrm.parallel.tensor_shard import TensorShard
from fastdlrm.parallel.world import World
from tests.dist.ranks import Ranks

D = 6
TABLES = {"a": 1001, "b": 7, "c": 3, "d": 50}  # c has fewer rows than four ranks
SHARDINGS = ("row_wise", "column_wise", "row_wise", "table_wise", "data_parallel")


def _whole() -> dict[str, dict[str, torch.Tensor]]:
    """All that a run of these tables has, as one process holds it."""
    draw = torch.Generator().manual_seed(0)
    model = {name: torch.randn(rows, D, generator=draw) for name, rows in TABLES.items()}
    model["d"] = model["d"].bfloat16()
    state = {f"{name}.row": torch.rand(rows, generator=draw) for name, rows in TABLES.items()}
    state |= {f"{name}.number": torch.rand(t.shape, generator=draw) for name, t in model.items()}
    return {
        "model": {**model, "mlp.weight": torch.randn(5, 3, generator=draw)},
        "optimizer": {**state, "num_steps": torch.tensor(2**40)},
        "loop": {"random": torch.randint(0, 255, (100,), dtype=torch.uint8, generator=draw)},
    }


def _table_plan(table: str, size: int, shift: int) -> TablePlan:
    """Another sharding for each table and shift; shards lie on ranks in descending order."""
    index = list(TABLES).index(table)
    num_rows, ranks = TABLES[table], list(reversed(range(size)))
    return {
        "table_wise": lambda: plan.table_wise(num_rows, D, (index + shift) % size),
        "row_wise": lambda: plan.row_wise(num_rows, D, ranks),
        "column_wise": lambda: plan.column_wise(num_rows, D, ranks),
        "data_parallel": plan.data_parallel,
    }[SHARDINGS[(index + shift) % len(SHARDINGS)]]()


def _part(
    whole: dict[str, dict[str, torch.Tensor]], rank: int, size: int, shift: int
) -> dict[str, dict[str, torch.Tensor | TensorShard]]:
    """What a rank holds under a plan: views of the whole."""
    part = {}
    for group, named in whole.items():
        part[group] = {}
        for name, tensor in named.items():
            table = name.partition(".")[0]
            planned = _table_plan(table, size, shift) if table in TABLES else plan.data_parallel()
            if not planned.shards:
                part[group][name] = tensor
            for s in planned.shards:
                if s.rank == rank:
                    rows = tensor[s.first_row : s.first_row + s.num_rows]
                    if rows.dim() == 2:
                        rows = rows[:, s.first_column : s.first_column + s.num_columns]
                    n = rows.dim()
                    place = (TABLES[table], D)[:n], (s.first_row, s.first_column)[:n]
                    part[group][name] = TensorShard(rows, *place, n == 1 and s.first_column > 0)
    return part


def _blank(whole: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    return {g: {n: torch.full_like(t, 99) for n, t in named.items()} for g, named in whole.items()}


def _assert_loads(folder: Path, world: World, shift: int) -> None:
    """Load a rank's part; nothing else of a blank whole may change."""
    filled, expected = _blank(_whole()), _blank(_whole())
    held = _part(expected, world.rank, world.size, shift)
    for group, named in _part(_whole(), world.rank, world.size, shift).items():
        for name, value in named.items():
            live = held[group][name]
            if isinstance(value, TensorShard):
                live, value = live.tensor, value.tensor  # noqa: PLW2901
            live.copy_(value)
    store.load_into(folder, _part(filled, world.rank, world.size, shift), world=world)
    for group, named in expected.items():
        for name, tensor in named.items():
            assert torch.equal(filled[group][name], tensor), (group, name)


def _message(action) -> str:
    """What a CheckpointError says."""
    with pytest.raises(CheckpointError) as caught:
        action()
    return str(caught.value)


def _save_on_four(root: Path) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch, World.of_environment() as world:
        patch.setattr(tensor_file, "READ_BYTES", 100)  # four rows of a table at a time
        saver = Saver(root, keep=9, world=world)
        for shift in range(len(SHARDINGS)):
            whole = _whole()
            saver.save(shift, _part(whole, world.rank, 4, shift), {"shift": shift}, {})
            for tensor in [t for named in whole.values() for t in named.values()]:
                tensor.zero_()  # the training goes on
        saver.wait()
        for shift in range(len(SHARDINGS)):
            _assert_loads(store.folder_of(root, shift), world, (shift + world.size - 1) % 5)
        folder = store.folder_of(root, 0)

        def load_with(change) -> str:
            part = _part(_blank(_whole()), world.rank, 4, 0)
            change(part["model"])
            return _message(lambda: store.load_into(folder, part, world=world))

        def reshape(model) -> None:
            if world.rank == 2:
                model["mlp.weight"] = torch.zeros(3, 5)

        def add(model) -> None:
            if world.rank == 3:
                model["e"] = torch.zeros(2)

        said = {
            "shape": load_with(reshape),
            "added": load_with(add),
            "left out": load_with(lambda model: model.pop("b", None)),
        }
        said["no group"] = _message(lambda: store.load_into(folder, {"tables": {}}, world=world))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if world.rank == 1:  # the system lets it write no file above this size
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        saver.save(10, _part(_whole(), world.rank, 4, 0), {}, {})
        said["disk"] = _message(saver.wait)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        piece = TensorShard(torch.zeros(3, 2), (13, 2), (world.rank * 3, 0))
        with pytest.raises(ValueError, match="invalid fill tensor-volume: 26 chunks-volume: 24"):
            store.save(root, 10, {"model": {"gap": piece}}, {}, {}, world=world)
        return said


@pytest.fixture(scope="module")
def saved(ranks: Ranks, tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    root = tmp_path_factory.mktemp("saved")
    return root, ranks.run(_save_on_four, 4, root)


def test_every_rank_says_what_is_wrong(saved):
    root, said = saved
    assert all(of_rank == said[0] for of_rank in said)
    folder = store.folder_of(root, 0)
    model = f"{folder}/model: tensor"
    remedy = "load it into the model that made it"
    assert said[0] == {
        "shape": f"{model} 'mlp.weight' has shape (5, 3), the model wants (3, 5); {remedy}",
        "added": f"{model} 'e' is only in the model; {remedy}",
        "left out": f"{model} 'b' is only in the checkpoint; {remedy}",
        "no group": f"{folder}: no group 'tables'; it holds loop, model, optimizer",
        "disk": said[0]["disk"],
    }
    disk = said[0]["disk"]
    assert disk.startswith(f"{store.folder_of(root, 10)}: cannot be written: rank 1: ")
    assert "File too large" in disk
    assert disk.endswith("; free space or make the folder writable, then train again with --resume")


def test_failed_save_leaves_nothing(saved):
    root, _ = saved
    assert sorted(p.name for p in root.iterdir()) == [f"step-{k:09d}" for k in range(5)]
    assert {p.suffix for p in root.glob("*/*")} == {".safetensors", ".json"}


def test_one_process_reads_what_four_wrote(saved):
    root, _ = saved
    for shift in range(len(SHARDINGS)):
        loaded = store.load(store.folder_of(root, shift))
        assert (loaded.step, loaded.state) == (shift, {"shift": shift})
        whole = _whole()
        assert loaded.tensors.keys() == whole.keys()
        for group, named in whole.items():
            assert loaded.tensors[group].keys() == named.keys()
            for name, tensor in named.items():
                assert loaded.tensors[group][name].dtype == tensor.dtype
                assert torch.equal(loaded.tensors[group][name], tensor), (shift, group, name)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_own_reader_reads_a_group(saved, tmp_path):
    root, _ = saved
    for path in store.folder_of(root, 0).glob("model-*.safetensors"):
        shutil.copy(path, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    whole = _whole()["model"]
    loaded = {name: torch.full_like(tensor, 99) for name, tensor in whole.items()}
    dcp.load(loaded, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)))
    for name, tensor in whole.items():
        assert torch.equal(loaded[name], tensor), name


def _load_on_fewer(saved_by_four: Path, saved_by_one: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, World.of_environment() as world:
        patch.setattr(tensor_file, "READ_BYTES", 100)
        for shift in range(len(SHARDINGS)):
            _assert_loads(store.folder_of(saved_by_four, shift), world, (shift + world.size) % 5)
            _assert_loads(saved_by_one, world, shift)


@pytest.mark.parametrize("size", [2, 3])
def test_fewer_ranks_read_what_four_and_what_one_wrote(ranks, saved, tmp_path, size):
    one = store.save(tmp_path, 1, _whole(), {}, {})
    ranks.run(_load_on_fewer, size, saved[0], one)


MIB = 2**20


def _peak_mib() -> float:
    """Most memory of this process since its peak was forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _load_half(folder: Path) -> tuple[float, float]:
    """Rise of the process's peak memory, in MiB: its half made, then loaded."""
    with World.of_environment() as world:
        store.load_into(folder, {"small": {"x": torch.zeros(1)}}, world=world)  # warm
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        empty = _peak_mib()
        rows = torch.ones(MIB // 2, 64)  # 128 MiB
        held = _peak_mib()
        piece = TensorShard(rows, (MIB, 64), (world.rank * MIB // 2, 0))
        store.load_into(folder, {"model": {"table": piece}}, world=world)
        loaded = _peak_mib()
        assert rows.unique().tolist() == [2]
        return held - empty, loaded - held


def test_loading_takes_one_read_besides_the_ranks_own_rows(ranks, tmp_path):
    """A table of 256 MiB in one file; a rank's half of it has 128."""
    table = torch.full((MIB, 64), 2.0)
    small = {"x": torch.zeros(1)}
    folder = store.save(tmp_path, 1, {"model": {"table": table}, "small": small}, {}, {})
    for own, more in ranks.run(_load_half, 2, folder):
        assert own == pytest.approx(128, abs=8)
        assert more < tensor_file.READ_BYTES / MIB + 8


def _die_while_saving(root: Path) -> str:
    world = World.of_environment()
    with pytest.raises(CheckpointError) as caught, world:
        saver = Saver(root, keep=1, world=world)
        saver.save(1, {"model": {"x": torch.full((4,), 1.0)}}, {}, {})
        saver.wait()
        if world.rank == 1:
            name = "model-00002-of-00002.safetensors"
            file = root / ".step-000000002.partial" / name
            threading.Thread(target=_kill_at, args=(file,), daemon=True).start()
        rows = torch.ones(32 * MIB, 1)  # 128 MiB
        piece = TensorShard(rows, (64 * MIB, 1), (world.rank * 32 * MIB, 0))
        saver.save(2, {"model": {"x": piece}}, {}, {})
        saver.wait()
    return str(caught.value)


def _kill_at(file: Path) -> None:
    """End this process as soon as a file begins to grow."""
    while not file.is_file() or not file.stat().st_size:
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def test_rank_killed_while_saving_leaves_the_last_checkpoint_whole(ranks, tmp_path):
    said, _ = ranks.run(_die_while_saving, 2, tmp_path, killed=[1])
    assert "step-000000002: cannot be written: a rank is gone: " in said
    assert store.steps(tmp_path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001"]
    assert store.load(store.folder_of(tmp_path, 1)).tensors["model"]["x"].tolist() == [1] * 4
