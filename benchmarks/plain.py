"""DLRM in plain eager PyTorch, the way the reference implementation computes it.

One nn.EmbeddingBag a table with sparse gradients, stack, bmm, `Z[:, i, j]` (or a cross network as
TorchRec writes it, which the reference has there), nn.Linear, BCE on
probabilities, one optimizer for all parameters. The pair indices, which the reference builds at
every step, are built once.

Source: facebookresearch/dlrm, dlrm_s_pytorch.py and optim/rwsadagrad.py.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from shapes import Shape
from torch import Tensor, nn

from fastdlrm.batch import Batch
from fastdlrm.model.dlrm import DLRM

Inputs = tuple[Tensor, list[Tensor], list[Tensor], Tensor]
"""Dense features, ids and bags' offsets of each feature, labels."""


class PlainDLRM(nn.Module):
    """The reference's model.

    Args:
        shape: Of the model.
        model: Its tables are copied on the CPU, and shared on a GPU, where two sets of large ones
            would not fit; the MLPs are its own.
    """

    def __init__(self, shape: Shape, model: DLRM) -> None:
        super().__init__()
        device = model.tables.weight.device
        self.emb = nn.ModuleList()
        for index, rows in enumerate(shape.rows):
            table = model.tables.table(f"t{index}")
            weight = table.clone() if device.type == "cpu" else table
            self.emb.append(
                nn.EmbeddingBag(rows, shape.dim, mode="sum", sparse=True, _weight=weight)
            )
        bottom = (shape.num_dense, *shape.bottom)
        self.bottom = _mlp(bottom, device, last_is_linear=False)
        self.top = _mlp((shape.top_input, *shape.top, 1), device, last_is_linear=True)
        vectors = len(shape.rows) + 1
        self.i, self.j = torch.tril_indices(vectors, vectors, -1, device=device)
        width, rank = vectors * shape.dim, shape.cross_rank
        self.cross = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, rank, bias=False, device=device),
                nn.Linear(rank, width, device=device),
            )
            for _ in range(shape.num_cross_layers)
        )

    def forward(self, dense: Tensor, ids: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
        """Probabilities, shape (B, 1)."""
        x = self.bottom(dense)
        pooled = [table(*bags) for table, *bags in zip(self.emb, ids, offsets, strict=True)]
        vectors = torch.stack([x, *pooled], 1)
        if self.cross:
            joined = start = vectors.flatten(1)
            for layer in self.cross:
                joined = start * layer(joined) + joined
        else:
            products = torch.bmm(vectors, vectors.transpose(1, 2))
            joined = torch.cat([x, products[:, self.i, self.j]], 1)
        return torch.sigmoid(self.top(joined).float())


class ReferenceRowWiseAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad on sparse gradients, Adagrad on dense ones, the reference's way."""

    def __init__(self, params: Iterable[Tensor], lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all parameters."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["eps"])

    def _update(self, p: Tensor, grad: Tensor, lr: float, eps: float) -> None:
        state = self.state[p]
        if not state:
            state["sum"] = torch.zeros_like(p[:, 0] if grad.is_sparse else p)
        total = state["sum"]
        if not grad.is_sparse:
            total.addcmul_(grad, grad)
            p.addcdiv_(grad, total.sqrt().add_(eps), value=-lr)
            return
        grad = grad.coalesce()
        indices, values, size = grad._indices(), grad._values(), grad.size()
        if values.numel() == 0:
            return

        def sparse(new: Tensor, extents: Sequence[int]) -> Tensor:
            return torch.sparse_coo_tensor(indices, new, extents, check_invariants=False)

        update = sparse(values.square().mean(1), size[:1])
        total.add_(update)
        std = total.sparse_mask(update.coalesce())._values().sqrt_().add_(eps)
        p.add_(sparse(values / std.unsqueeze(1), size), alpha=-lr)


def plain_inputs(shape: Shape, batch: Batch) -> Inputs:
    """A batch in the reference's layout."""
    B, device = batch.num_samples, batch.dense.device
    ids = list(batch.sparse.ids.long().split([B * size for size in shape.bag_sizes]))
    offsets = [torch.arange(0, B * size, size, device=device) for size in shape.bag_sizes]
    return batch.dense, ids, offsets, batch.labels.unsqueeze(1)


def plain_step(
    model: PlainDLRM, inputs: Sequence[Inputs], rule: str, autocast: torch.dtype | None = None
) -> Callable[[int], None]:
    """A training step on the k-th input.

    Args:
        model: Shares its tables.
        inputs: Rotated over.
        rule: "sgd" or "rowwise_adagrad", of all parameters.
        autocast: Type of the matrix products; None: float32.
    """
    params = list(model.parameters())
    if rule == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(params, lr=0.01)
    else:
        optimizer = ReferenceRowWiseAdagrad(params, lr=0.01)
    loss = nn.BCELoss()
    kind = params[0].device.type

    def step(k: int) -> None:
        dense, ids, offsets, labels = inputs[k % len(inputs)]
        optimizer.zero_grad()
        with torch.autocast(kind, autocast, enabled=autocast is not None):
            probabilities = model(dense, ids, offsets)
        loss(probabilities, labels).backward()
        optimizer.step()

    return step


def _mlp(widths: Sequence[int], device: torch.device, *, last_is_linear: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, device=device), nn.ReLU()]
    return nn.Sequential(*layers[: -1 if last_is_linear else None])
