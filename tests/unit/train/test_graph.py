"""Steps replayed from a CUDA graph are the very steps taken one kernel at a time."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.train.config import TrainConfig
from fastdlrm.train.graph import StepGraph
from fastdlrm.train.step import TrainStep, why_no_graph
from tests.interactions import SETTINGS
from tests.training import (
    BATCH_SIZE,
    NUM_DENSE,
    bags,
    make_config,
    make_model,
    restore,
    single_ids,
    state_of,
    take,
)

NUM_STEPS = 20
TABLE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_step(config: TrainConfig, table_dtype: str = "fp32", **changes: object) -> TrainStep:
    step = TrainStep(make_model(table_dtype=TABLE_DTYPES[table_dtype], **changes).cuda(), config)
    assert bool(step.why_no_graph) == (not config.use_cuda_graph)
    return step


def pinned(count: int = NUM_STEPS) -> list[Batch]:
    return [single_ids(seed).pin() for seed in range(count)]


def assert_same_bits(one: TrainStep, other: TrainStep) -> None:
    found, expected = state_of(one), state_of(other)
    assert found.keys() == expected.keys()
    assert [name for name, x in found.items() if not torch.equal(x, expected[name])] == []


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("precision", "tables"), [("fp32", "fp32"), ("bf16", "bf16")])
@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        ("sgd", "sgd"),
        ("adagrad", "rowwise_adagrad"),
        ("adam", "adagrad"),
        ("adamw", "adam"),
    ],
)
def test_the_graph_takes_the_very_steps(
    dense: str, sparse: str, precision: str, tables: str
) -> None:
    results, steps = [], []
    for use_cuda_graph in (True, False):
        config = make_config(dense, sparse, precision=precision, use_cuda_graph=use_cuda_graph)
        steps.append(make_step(config, tables))
        results.append(take(steps[-1], pinned()))
    assert torch.equal(*results)
    assert_same_bits(*steps)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [*({"interaction": name} for name in SETTINGS), {"num_dense": 0}, {"norm": "batch"}],
)
def test_the_graph_takes_any_model(changes: dict[str, object]) -> None:
    results, steps = [], []
    batches = [single_ids(seed, num_dense=changes.get("num_dense", 5)) for seed in range(6)]
    for use_cuda_graph in (True, False):
        config = make_config("adagrad", "rowwise_adagrad", use_cuda_graph=use_cuda_graph)
        steps.append(make_step(config, **changes))
        results.append(take(steps[-1], batches))
    assert torch.equal(*results)
    assert_same_bits(*steps)


def bags_of_fixed_sizes(seed: int, is_weighted: bool) -> Batch:
    """Bags of 3, 1 and 2 ids, as MLPerf's DLRM-DCNv2 has them: every batch holds as many ids."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (3, 1, 2)
    ids = [
        torch.randint(0, rows, (size * BATCH_SIZE,), generator=generator, dtype=torch.int32)
        for rows, size in zip((100, 7, 100), sizes, strict=True)
    ]
    whole = torch.cat(ids)
    return Batch(
        dense=torch.randn(BATCH_SIZE, NUM_DENSE, generator=generator),
        sparse=SparseBatch(
            ids=whole,
            lengths=torch.tensor(sizes, dtype=torch.int32).repeat_interleave(BATCH_SIZE),
            weights=torch.rand(len(whole), generator=generator) if is_weighted else None,
            num_features=3,
        ),
        labels=(ids[1] % 2).float(),
    )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("pooling", ["sum", "mean", "mixed"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("interaction", ["dot", "cross"])
def test_the_graph_takes_bags_of_fixed_sizes(
    interaction: str, is_weighted: bool, pooling: str
) -> None:
    """Other batches of bags, in between, go the other way."""
    batches = [bags_of_fixed_sizes(seed, is_weighted) for seed in range(8)]
    batches[5:5] = [bags(50, is_weighted=is_weighted)]
    results, steps = [], []
    for use_cuda_graph in (True, False):
        config = make_config("adagrad", "rowwise_adagrad", use_cuda_graph=use_cuda_graph)
        steps.append(make_step(config, interaction=interaction, pooling=pooling))
        taken = [batch.pin() if k % 2 else batch.to("cuda") for k, batch in enumerate(batches)]
        results.append(take(steps[-1], taken))
    assert torch.equal(*results)
    assert_same_bits(*steps)


def test_which_batches_a_graph_takes() -> None:
    """Bags only where their sizes need not be known by the host; none of another shape."""
    graphs = {
        takes_bags: StepGraph(lambda *of: of[1], BATCH_SIZE, takes_bags=takes_bags)
        for takes_bags in (True, False)
    }
    fixed = bags_of_fixed_sizes(0, False)
    assert graphs[True].takes(fixed)
    assert not graphs[False].takes(fixed)
    assert graphs[False].takes(single_ids(0))
    assert not graphs[True].takes(single_ids(0, num_samples=7))


@pytest.mark.gpu
@needs_gpu
def test_the_graph_takes_micro_batches() -> None:
    results, steps = [], []
    for use_cuda_graph in (True, False):
        config = make_config(gradient_accumulation_steps=3, use_cuda_graph=use_cuda_graph)
        steps.append(make_step(config))
        results.append(take(steps[-1], pinned(8)))
    assert torch.equal(*results)
    assert_same_bits(*steps)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("place", [lambda batch: batch, Batch.pin, lambda batch: batch.to("cuda")])
def test_a_batch_may_lie_anywhere(place: Callable[[Batch], Batch]) -> None:
    config = make_config("adagrad", "rowwise_adagrad")
    one, other = make_step(config), make_step(config)
    losses = take(one, [place(single_ids(seed)) for seed in range(8)])
    assert torch.equal(losses, take(other, pinned(8)))
    assert_same_bits(one, other)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_smaller_batch_between_replays(precision: str) -> None:
    """It is not of the graph's shape, and the graph goes on with what it did."""
    batches = pinned(6)
    batches[4:4] = [single_ids(90, num_samples=7).pin(), single_ids(91, num_samples=1).pin()]
    results, steps = [], []
    for use_cuda_graph in (True, False):
        config = make_config(
            "adam", "rowwise_adagrad", precision=precision, use_cuda_graph=use_cuda_graph
        )
        steps.append(make_step(config))
        results.append(take(steps[-1], batches))
    assert torch.equal(*results)
    assert_same_bits(*steps)


@pytest.mark.gpu
@needs_gpu
def test_the_first_batch_waits_for_its_memory() -> None:
    """Work still queued on memory that was given back does not write into the first batch."""
    config = make_config("adagrad", "rowwise_adagrad")
    one, other = make_step(config), make_step(config)
    expected = take(one, pinned(2))
    batches = pinned(2)
    buffer = batches[0].buffer
    assert buffer is not None
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    junk = [torch.full_like(buffer, 255, device="cuda") for _ in range(16)]
    del junk
    assert torch.equal(take(other, batches), expected)


@pytest.mark.gpu
@needs_gpu
def test_other_threads_may_page_lock_memory_during_capture() -> None:
    step = make_step(make_config("adagrad", "rowwise_adagrad"))
    is_done = threading.Event()
    kept: list[Tensor] = []

    def page_lock() -> None:
        while not is_done.is_set():
            kept.append(torch.empty(1000 + 4096 * len(kept), dtype=torch.uint8, pin_memory=True))

    thread = threading.Thread(target=page_lock)
    thread.start()
    try:
        losses = take(step, pinned(6))
    finally:
        is_done.set()
        thread.join()
    assert torch.equal(
        losses, take(make_step(make_config("adagrad", "rowwise_adagrad")), pinned(6))
    )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_have_the_same_bits(precision: str) -> None:
    config = make_config("adam", "rowwise_adagrad", precision=precision)
    one, other = make_step(config, "bf16"), make_step(config, "bf16")
    assert torch.equal(take(one, pinned()), take(other, pinned()))
    assert_same_bits(one, other)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("dense", "sparse"), [("adagrad", "rowwise_adagrad"), ("adam", "adam")])
def test_a_resumed_run_goes_on_with_the_same_bits(dense: str, sparse: str, precision: str) -> None:
    config, batches = make_config(dense, sparse, precision=precision), pinned()
    whole = make_step(config, "bf16")
    take(whole, batches[:10])
    saved = state_of(whole)
    rest = take(whole, batches[10:], first=10)

    def group(prefix: str) -> dict[str, Tensor]:
        named = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
        assert named
        return named

    resumed = make_step(config, "bf16")
    restore(resumed.model.state_tensors(), group("model."))
    restore(resumed.sparse_optimizer.state_tensors(), group("sparse."))
    restore(resumed.dense_optimizer.state_tensors(), group("dense."))
    resumed.dense_optimizer.refresh()
    assert torch.equal(take(resumed, batches[10:], first=10), rest)
    assert_same_bits(resumed, whole)


@pytest.mark.gpu
@needs_gpu
def test_every_replay_draws_another_dropout_mask() -> None:
    step = make_step(make_config(learning_rate=1e-12), dropout=0.5)
    losses = take(step, [single_ids(0).pin()] * 12)
    # two steps to warm up, the others replayed
    assert len(set(losses[2:].tolist())) > 5


@pytest.mark.parametrize(
    ("device", "changes", "reason"),
    [
        ("cpu", {}, "steps run on the CPU"),
        ("cuda", {"use_cuda_graph": False}, "train.use_cuda_graph is false"),
        ("cuda", {"gradient_clip_norm": 1.0}, "train.gradient_clip_norm needs the norm of all"),
        ("cuda", {}, ""),
    ],
)
def test_why_there_is_no_graph(device: str, changes: dict[str, object], reason: str) -> None:
    found = why_no_graph(make_config(**changes), torch.device(device))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
