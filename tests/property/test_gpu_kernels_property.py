"""Kernels in Triton against the slow oracles over drawn batches: empty bags, repeats, long runs."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdlrm.kernels import interaction, lookup  # noqa: F401  define what the kernels implement
from fastdlrm.kernels.cuda import interaction as interaction_kernels
from fastdlrm.kernels.cuda import lookup as lookup_kernels
from fastdlrm.kernels.cuda import row_update as row_update_kernels
from fastdlrm.kernels.row_gradient import row_order
from fastdlrm.kernels.row_update import UpdateRule
from fastdlrm.kernels.step_scalars import StepScalars
from tests import oracles
from tests.kernel_device import DEVICE, MARKS, assert_near, draw, on_device

pytestmark = MARKS

NUM_ROWS = 6
FEW = settings(max_examples=25, deadline=None)
# A dim is compiled into a kernel: a few are enough.
DIM = st.sampled_from([1, 5, 16])
BAGS = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=9), min_size=1, max_size=12)
SEED = st.integers(0, 2**16)


def jagged(bags: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor([row for bag in bags for row in bag], dtype=torch.int32, device=DEVICE)
    return rows, torch.tensor([0, *map(len, bags)], device=DEVICE).cumsum(0)


@FEW
@given(bags=BAGS, pooling=st.sampled_from(["sum", "mean"]), dim=DIM, seed=SEED)
def test_weighted_lookup(bags: list[list[int]], pooling: str, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, offsets = jagged(bags)
    weight = draw(torch.Generator().manual_seed(seed), NUM_ROWS, dim)
    bag_weights = [rng.integers(-8, 9, len(bag)) / 4 for bag in bags]
    weights = torch.tensor(np.concatenate(bag_weights), dtype=torch.float32, device=DEVICE)
    found = lookup_kernels.pooled_lookup(
        weight, rows, offsets, weights, pooling == "mean", torch.float32
    )
    exact = oracles.pooled_lookup(weight.double().cpu().numpy(), bags, bag_weights, pooling)
    assert_near(found, torch.from_numpy(exact))


@FEW
@given(
    num_samples=st.integers(1, 4),
    num_features=st.sampled_from([1, 3, 17, 66]),
    dim=DIM,
    has_dense=st.booleans(),
    seed=SEED,
)
def test_lookup_and_interaction(
    num_samples: int, num_features: int, dim: int, has_dense: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = draw(generator, NUM_ROWS, dim)
    ids = torch.randint(0, NUM_ROWS, (num_features, num_samples), generator=generator)
    dense = draw(generator, num_samples, dim) if has_dense else None
    diagonal = num_features + has_dense < 2
    width = interaction.dot_interaction_width(num_features, dim, has_dense, diagonal)
    found = interaction_kernels.lookup_dot_interaction(
        weight, ids.flatten().to(DEVICE), dense, num_features, diagonal, width, torch.float32
    )
    pooled = weight.double().cpu().numpy()[ids.t().numpy()]
    vector = None if dense is None else dense.double().cpu().numpy()
    exact = torch.from_numpy(oracles.dot_interaction(vector, pooled, diagonal))
    # a product may be far smaller than its terms
    torch.testing.assert_close(found.double().cpu(), exact, rtol=1e-5, atol=1e-4)


@FEW
@given(
    runs=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    chunk=st.sampled_from([1, 2, 5]),
    parts=st.sampled_from([1, 4]),
    dim=DIM,
    seed=SEED,
)
def test_rows_of_any_run_lengths(
    runs: list[int], chunk: int, parts: int, dim: int, seed: int
) -> None:
    """By SGD at rate 1, so that a row moves by the sum of its gradients: whole numbers, exact."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(len(runs)), runs))
    grad = rng.integers(-9, 10, (len(ids), dim)).astype(np.float32)
    weight = torch.zeros(len(runs) + 1, dim, device=DEVICE)
    before = row_update_kernels.CHUNK, row_update_kernels.PARTS
    row_update_kernels.CHUNK, row_update_kernels.PARTS = chunk, parts
    try:
        order = row_order(torch.from_numpy(ids).to(DEVICE))
        row_update_kernels.update_rows_(
            weight,
            [],
            torch.from_numpy(grad).to(DEVICE),
            order.rows,
            order.bags,
            None,
            row_update_kernels.row_chunks(order.rows),
            on_device(StepScalars(1.0)),
            **UpdateRule("sgd")._asdict(),
        )
    finally:
        row_update_kernels.CHUNK, row_update_kernels.PARTS = before
    expected = np.zeros((len(runs) + 1, dim))
    for row, values in oracles.row_gradient(grad, [[row] for row in ids.tolist()]).items():
        expected[row] = -values
    np.testing.assert_array_equal(weight.cpu().numpy(), expected)
