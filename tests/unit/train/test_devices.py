"""Training on a GPU is training on the CPU, up to rounding."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from fastdlrm.batch import Batch
from fastdlrm.train.step import TrainStep
from tests.training import bags, make_config, make_model, single_ids, state_of, take

NUM_STEPS = 20
ADAGRAD = {"dense": "adagrad", "sparse": "rowwise_adagrad"}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CASES: dict[str, tuple[Callable[[int], Batch], dict[str, object], dict[str, object]]] = {
    # name: batch of a seed, changes of the model, settings
    "single ids, sgd": (single_ids, {}, {"dense": "sgd", "sparse": "sgd"}),
    "single ids, adagrad": (single_ids, {}, {"dense": "adagrad", "sparse": "adagrad"}),
    "single ids, rowwise": (single_ids, {}, ADAGRAD),
    "single ids, adam": (single_ids, {}, {"dense": "adam", "sparse": "adam"}),
    "single ids, adamw": (single_ids, {}, {"dense": "adamw", "sparse": "adam"}),
    "bags": (bags, {}, ADAGRAD),
    "weighted bags": (partial(bags, is_weighted=True), {}, ADAGRAD),
    "mean": (bags, {"pooling": "mean"}, ADAGRAD),
    "weighted mean": (partial(bags, is_weighted=True), {"pooling": "mean"}, ADAGRAD),
    "sums and means": (bags, {"pooling": "mixed"}, ADAGRAD),
    "cat": (single_ids, {"interaction": "cat"}, ADAGRAD),
    "cat of bags": (bags, {"interaction": "cat"}, ADAGRAD),
    "diagonal": (single_ids, {"interaction": "dot_self"}, ADAGRAD),
    "cross": (single_ids, {"interaction": "cross"}, ADAGRAD),
    "cross of bags": (bags, {"interaction": "cross"}, ADAGRAD),
    "projection": (single_ids, {"interaction": "projection"}, ADAGRAD),
    "no dense features": (partial(single_ids, num_dense=0), {"num_dense": 0}, ADAGRAD),
    "layer norm": (single_ids, {"norm": "layer"}, ADAGRAD),
    "batch norm": (single_ids, {"norm": "batch"}, ADAGRAD),
    "batch norm of bags": (bags, {"norm": "batch"}, ADAGRAD),
    "fp16 tables": (single_ids, {"table_dtype": torch.float16}, ADAGRAD),
    "mse": (single_ids, {}, {**ADAGRAD, "loss": "mse"}),
    "weighted loss": (
        single_ids,
        {},
        {**ADAGRAD, "loss": "weighted_bce", "class_weights": (0.7, 2.0)},
    ),
    "clipped": (single_ids, {}, {**ADAGRAD, "gradient_clip_norm": 0.05}),
    "clipped bags": (bags, {}, {**ADAGRAD, "gradient_clip_norm": 0.05}),
    "micro-batches": (single_ids, {}, {**ADAGRAD, "gradient_accumulation_steps": 3}),
    "micro-batches of bags": (bags, {}, {**ADAGRAD, "gradient_accumulation_steps": 3}),
    "clipped micro-batches": (
        partial(bags, is_weighted=True),
        {},
        {**ADAGRAD, "gradient_accumulation_steps": 3, "gradient_clip_norm": 0.05},
    ),
}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_gpu_is_the_cpu(case: str) -> None:
    draw, changes, settings = CASES[case]
    losses, states = [], []
    for device in ("cpu", "cuda"):
        step = TrainStep(make_model(**changes).to(device), make_config(**settings))
        batches = [draw(seed) for seed in range(NUM_STEPS)]
        losses.append(take(step, [b.pin() if device == "cuda" else b for b in batches]))
        states.append(state_of(step))
    # 20 steps of sums in another order; rows in fp16 are rounded to 2^-11 of themselves at each
    is_half = changes.get("table_dtype") == torch.float16
    rtol, atol = (1e-2, 2e-3) if is_half else (1e-3, 1e-5)
    torch.testing.assert_close(losses[1], losses[0], rtol=rtol, atol=atol)
    assert states[0].keys() == states[1].keys()
    for name, expected in states[0].items():
        torch.testing.assert_close(
            states[1][name], expected, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("draw", [single_ids, bags])
def test_bf16_is_near_fp32(draw: Callable[[int], Batch]) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        # a small rate: where the loss falls steeply, a small difference of weights is a large one
        config = make_config(**ADAGRAD, learning_rate=0.005, precision=precision)
        step = TrainStep(make_model().cuda(), config)
        losses.append(take(step, [draw(seed).pin() for seed in range(NUM_STEPS)]))
    # bf16 keeps 8 bits: 2^-8 a product, which 20 steps add up
    torch.testing.assert_close(losses[1], losses[0], rtol=5e-2, atol=2e-2)
    assert not torch.equal(*losses)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_on_bags_have_the_same_bits(precision: str) -> None:
    results = []
    for _ in range(2):
        config = make_config("adam", "rowwise_adagrad", precision=precision)
        step = TrainStep(make_model(pooling="mean", table_dtype=torch.bfloat16).cuda(), config)
        take(step, [bags(seed, is_weighted=True).pin() for seed in range(NUM_STEPS)])
        results.append(state_of(step))
    for name, x in results[0].items():
        assert torch.equal(x, results[1][name]), name


@pytest.mark.parametrize(
    ("device", "use_cuda_graph"),
    [
        ("cpu", True),
        pytest.param("cuda", True, marks=[pytest.mark.gpu, needs_gpu]),
        pytest.param("cuda", False, marks=[pytest.mark.gpu, needs_gpu]),
    ],
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_dropout_trains(device: str, use_cuda_graph: bool, norm: str) -> None:
    """The masks differ between devices; that the model learns does not."""
    torch.manual_seed(0)
    config = make_config(
        "adam", "rowwise_adagrad", learning_rate=0.02, use_cuda_graph=use_cuda_graph
    )
    step = TrainStep(make_model(dropout=0.2, norm=norm).to(device), config)
    losses = take(step, [single_ids(seed) for seed in range(120)])
    assert losses[-10:].mean() < 0.7 * losses[:10].mean()
