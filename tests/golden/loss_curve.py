"""Makes tests/golden/loss_curve.json: losses of 50 steps by plain PyTorch in float64, on the CPU.

The plain way is the reference implementation's: one nn.EmbeddingBag a table with sparse gradients,
bmm, `Z[:, i, j]`, autograd, torch.optim.SGD; and its row-wise Adagrad, written out below. Weights
and batches come from NumPy's frozen generator, so they are the same everywhere.

Usage: python -m tests.golden.loss_curve
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.model.dlrm import DLRM
from fastdlrm.model.embedding import EmbeddingTables
from fastdlrm.model.interaction import DotInteraction, Vectors
from fastdlrm.model.mlp import build_mlp

GOLDEN = Path(__file__).with_name("loss_curve.json")
NUM_STEPS = 50
B, N, D = 64, 5, 16
ROWS = {"a": 500, "b": 40, "c": 3}
BOTTOM, TOP = (24, D), (32, 16)
LEARNING_RATE = {"sgd": 0.2, "rowwise_adagrad": 0.05}
EPS = 1e-8


def make_model() -> DLRM:
    """The model before the first step, float32."""
    random = np.random.RandomState(0)
    tables = EmbeddingTables(ROWS, list(ROWS), embedding_dim=D)
    generator = torch.Generator()
    bottom = build_mlp(N, BOTTOM, generator=generator)
    dot = DotInteraction(Vectors(len(ROWS), D, True))
    top = build_mlp(dot.width, TOP, out_features=1, generator=generator)
    model = DLRM(tables, bottom, dot, top)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter is tables.weight else parameter.shape[-1] ** -0.5
            drawn = random.normal(0, scale, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(drawn))
    return model


def make_batch(step: int) -> Batch:
    """Bags of 0 to 3 ids, with a signal in the dense features and in feature b."""
    random = np.random.RandomState(1000 + step)
    lengths = random.randint(0, 4, len(ROWS) * B).astype(np.int32)
    sizes = lengths.reshape(len(ROWS), B).sum(1)
    ids = [random.randint(0, n, size) for n, size in zip(ROWS.values(), sizes, strict=True)]
    dense = random.normal(size=(B, N)).astype(np.float32)
    odd = np.zeros(B)
    np.add.at(odd, np.repeat(np.arange(B), lengths[B : 2 * B]), ids[1] % 2 - 0.5)
    labels = (dense[:, 0] - dense[:, 1] + 2 * odd + random.normal(size=B) > 0).astype(np.float32)
    return Batch(
        dense=torch.from_numpy(dense),
        sparse=SparseBatch(
            ids=torch.from_numpy(np.concatenate(ids).astype(np.int32)),
            lengths=torch.from_numpy(lengths),
            weights=None,
            num_features=len(ROWS),
        ),
        labels=torch.from_numpy(labels),
    )


class PlainDLRM(nn.Module):
    """The reference's model, with another's weights, in float64."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.emb = nn.ModuleList(
            nn.EmbeddingBag(
                n, D, mode="sum", sparse=True, _weight=model.tables.table(name).double().clone()
            )
            for name, n in ROWS.items()
        )
        self.bottom = _mlp((N, *BOTTOM), model.bottom_mlp, last_is_linear=False)
        vectors = len(ROWS) + 1
        widths = (D + vectors * (vectors - 1) // 2, *TOP, 1)
        self.top = _mlp(widths, model.top_mlp, last_is_linear=True)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, shape (B,)."""
        x = self.bottom(batch.dense.double())
        offsets = batch.sparse.offsets()
        vectors = [x]
        for f, table in enumerate(self.emb):
            first, last = f * B, (f + 1) * B
            own = batch.sparse.ids[int(offsets[first]) : int(offsets[last])].long()
            vectors.append(table(own, offsets[first:last] - offsets[first]))
        stacked = torch.stack(vectors, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        i, j = torch.tril_indices(len(vectors), len(vectors), -1)
        return self.top(torch.cat([x, products[:, i, j]], 1)).squeeze(1)


def plain_losses(rule: str) -> list[float]:
    """The losses of the plain way; the MLPs have SGD in both cases."""
    plain = PlainDLRM(make_model())
    tables = [table.weight for table in plain.emb]
    dense = [p for name, p in plain.named_parameters() if not name.startswith("emb.")]
    trained = [*dense, *tables] if rule == "sgd" else dense
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE["sgd"])
    sums = [torch.zeros(len(table), dtype=torch.float64) for table in tables]
    losses = []
    for step in range(NUM_STEPS):
        batch = make_batch(step)
        plain.zero_grad()
        loss = nn.functional.binary_cross_entropy(
            torch.sigmoid(plain(batch)), batch.labels.double()
        )
        loss.backward()
        optimizer.step()
        if rule == "rowwise_adagrad":
            for table, total in zip(tables, sums, strict=True):
                _rowwise_adagrad(table, total)
        losses.append(loss.item())
    return losses


@torch.no_grad()
def _rowwise_adagrad(table: Tensor, total: Tensor) -> None:
    """s += mean of g^2 over a row; w -= lr g / (sqrt(s) + eps)."""
    grad = table.grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    total[rows] += values.square().mean(1)
    step = LEARNING_RATE["rowwise_adagrad"] / (total[rows].sqrt() + EPS)
    table[rows] -= step.unsqueeze(1) * values


def _mlp(widths: tuple[int, ...], source: nn.Module, *, last_is_linear: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    linears = [module for module in source if isinstance(module, nn.Linear)]
    for (fan_in, fan_out), linear in zip(pairwise(widths), linears, strict=True):
        own = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        own.load_state_dict({k: v.double() for k, v in linear.state_dict().items()})
        layers += [own, nn.ReLU()]
    return nn.Sequential(*layers[: -1 if last_is_linear else None])


def main() -> None:
    curves = {rule: plain_losses(rule) for rule in LEARNING_RATE}
    content = {"made_by": "python -m tests.golden.loss_curve", "losses": curves}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
