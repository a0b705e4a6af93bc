"""Tables of several widths against whole tables that are zero beyond each width, by autograd."""

import math

import pytest
import torch
from torch import Tensor, nn

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.mixed_tables import MixedTables
from fastdlrm.train.config import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from fastdlrm.train.mixed_optimizer import MixedSparseOptimizer
from fastdlrm.train.step import TrainStep
from tests.training import (
    DIM,
    FEATURES,
    TABLES,
    bags,
    make_config,
    make_model,
    mixed_tables,
    restore,
    single_ids,
    state_of,
    take,
)

NARROW = {"a": 3, "b": DIM}
RATE, EPS = 0.1, 1e-2


class PaddedTables(nn.Module):
    """Whole tables of D columns, of which those beyond a table's width count for nothing."""

    def __init__(self, tables: dict[str, Tensor]) -> None:
        super().__init__()
        self.whole = nn.ParameterDict(
            {name: nn.functional.pad(t, (0, DIM - t.shape[1])) for name, t in tables.items()}
        )
        self.masks = {name: torch.arange(DIM) < t.shape[1] for name, t in tables.items()}

    def forward(self, sparse: SparseBatch, dtype: torch.dtype | None = None) -> Tensor:
        F, B = len(FEATURES), sparse.num_samples
        lengths = torch.ones(F * B) if sparse.lengths is None else sparse.lengths
        pieces, bag = sparse.ids.split(lengths.int().tolist()), 0
        at, vectors = 0, []
        for name in FEATURES:
            for _ in range(B):
                rows = (self.whole[name] * self.masks[name])[pieces[bag].long()]
                if sparse.weights is not None:
                    rows = rows * sparse.weights[at : at + len(rows), None]
                vectors.append(rows.sum(0))
                at, bag = at + len(rows), bag + 1
        return torch.stack(vectors).view(F, B, DIM).transpose(0, 1)


def plain_config(name: str):
    """Nothing but the optimizers' own rules."""
    return make_config(
        dense_optimizer=DenseOptimizerConfig(name=name, learning_rate=RATE, eps=EPS),
        sparse_optimizer=SparseOptimizerConfig(name=name, learning_rate=RATE, eps=EPS),
        schedule=ScheduleConfig(name="constant"),
    )


def draw(kind: str, seed: int) -> Batch:
    if kind == "single":
        return single_ids(seed)
    return bags(seed, is_weighted=kind == "weighted")


@pytest.mark.parametrize(
    ("optimizer", "interaction", "kind"),
    [
        ("sgd", "dot", "single"),
        ("adagrad", "dot", "single"),
        ("adagrad", "cross", "bags"),
        ("sgd", "cat", "weighted"),
    ],
)
def test_learns_what_padded_tables_learn(optimizer: str, interaction: str, kind: str) -> None:
    model = make_model(interaction, tables=mixed_tables(NARROW))
    assert isinstance(model.tables, MixedTables)
    kept = {name: table.clone() for name, table in model.tables.state_tensors().items()}
    assert {name: table.shape for name, table in kept.items()} == {"a": (100, 3), "b": (7, DIM)}
    other = make_model(interaction)
    plain = DLRM(PaddedTables(kept), other.bottom_mlp, other.interaction, other.top_mlp)
    dense = {n: p.detach() for n, p in model.named_parameters() if not n.startswith("tables.")}
    restore({n: p for n, p in plain.named_parameters() if not n.startswith("tables.")}, dense)
    rules = {
        "sgd": lambda p: torch.optim.SGD(p, lr=RATE),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=RATE, eps=EPS),
    }
    reference = rules[optimizer](list(plain.parameters()))
    step = TrainStep(model, plain_config(optimizer))
    for seed in range(3):
        batch = draw(kind, seed)
        reference.zero_grad()
        logits = plain(batch.dense, batch.sparse)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        loss.backward()
        reference.step()
        torch.testing.assert_close(step(batch, seed), loss.detach(), rtol=1e-5, atol=1e-6)
    for name, table in model.tables.state_tensors().items():
        whole = plain.tables.whole[name].detach()
        torch.testing.assert_close(table, whole[:, : table.shape[1]], rtol=1e-4, atol=1e-5)
        assert not torch.equal(table, kept[name])
        assert not whole[:, table.shape[1] :].any()
    ours, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    for name in dense:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_rowwise_adagrad_takes_the_mean_over_the_columns_there_are() -> None:
    tables = mixed_tables({"a": 2, "b": DIM})
    with torch.no_grad():
        for table in tables.state_tensors().values():
            table.fill_(1.0)
    rule = SparseOptimizerConfig(name="rowwise_adagrad", learning_rate=0.1, eps=0.5)
    optimizer = MixedSparseOptimizer(rule, tables)
    ids = torch.tensor([5, 6, 7], dtype=torch.int32)
    lookup = optimizer.look_up(
        SparseBatch(ids=ids, lengths=None, weights=None, num_features=3), is_whole=True
    )
    grad = torch.zeros(1, 3, DIM)
    grad[0, 0] = torch.tensor([3.0, 4.0] + [9.0] * (DIM - 2))  # what is beyond d is not read
    optimizer.take(lookup, grad, optimizer.next_scalars(0.1).tensor(torch.device("cpu")))
    # s = (9 + 16) / 2 = 12.5
    denominator = math.sqrt(12.5) + 0.5
    expected = torch.tensor([1 - 0.3 / denominator, 1 - 0.4 / denominator])
    torch.testing.assert_close(tables.state_tensors()["a"][5], expected)
    state = optimizer.state_tensors()
    assert state["tables.a.square_sum"].nonzero().tolist() == [[5]]
    assert float(state["tables.a.square_sum"][5]) == 12.5
    assert state["num_steps"] == 1


@pytest.mark.parametrize("kind", ["single", "bags"])
def test_equal_widths_learn_as_one_stack(kind: str) -> None:
    """Two stacks of one width, joined, learn what one stack learns."""
    config = make_config(
        "adagrad", "adagrad", gradient_accumulation_steps=3, gradient_clip_norm=0.1
    )
    parts = [
        EmbeddingTables({"a": TABLES["a"]}, ["a", "a"], embedding_dim=DIM),
        EmbeddingTables({"b": TABLES["b"]}, ["b"], embedding_dim=DIM),
    ]
    joined = MixedTables(TABLES, DIM, parts, [[0, 2], [1]])
    one, other = TrainStep(make_model(), config), TrainStep(make_model(tables=joined), config)
    batches = [draw(kind, seed) for seed in range(3)]
    assert torch.equal(take(one, batches), take(other, batches))
    expected, found = state_of(one), state_of(other)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # the norm that gradients are clipped by is summed stack by stack
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_resumes_bit_for_bit() -> None:
    config = make_config("adam", "adam")
    batches = [single_ids(seed) for seed in range(4)]
    whole = TrainStep(make_model(tables=mixed_tables(NARROW)), config)
    take(whole, batches)
    first = TrainStep(make_model(tables=mixed_tables(NARROW)), config)
    take(first, batches[:2])
    second = TrainStep(make_model(tables=mixed_tables({"a": 3, "b": DIM})), config)
    for group in ("model", "sparse_optimizer", "dense_optimizer"):
        live, saved = (getattr(step, group).state_tensors() for step in (second, first))
        restore(live, saved)
    second.dense_optimizer.refresh()
    take(second, batches[2:], first=2)
    expected, found = state_of(whole), state_of(second)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["single", "bags"])
@pytest.mark.parametrize("projected", [{}, {"a": 3}])
def test_a_gpu_takes_the_same_steps(kind: str, projected: dict[str, int]) -> None:
    """Single ids from the fourth step on by a CUDA graph."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batches = [draw(kind, seed) for seed in (0, 0, 1, 1, 2, 2)]
    here, there = (make_model(tables=mixed_tables(NARROW), projected=projected) for _ in range(2))
    there = there.cuda()
    config = make_config("sgd", "adagrad")
    losses = [take(TrainStep(model, config), batches) for model in (here, there)]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    for name, table in here.tables.state_tensors().items():
        ours = there.tables.state_tensors()[name].cpu()
        torch.testing.assert_close(ours, table, atol=1e-4, rtol=1e-3, msg=name)
