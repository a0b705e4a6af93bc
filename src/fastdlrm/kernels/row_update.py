"""Optimizer updates in place, of the rows that a batch read: no other row or state moves.

`update_rows_` is the operator: from the gradients of bags straight to updated rows. The functions
below it are the rules its definition applies, each on a `RowGradient`.

Shapes: R rows of all tables together, D embedding dim, L ids in the batch, U different rows.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastdlrm.kernels.cpu.pages import advise_large_pages
from fastdlrm.kernels.library import define, has_gpu_kernels, implement, on_first_call
from fastdlrm.kernels.row_gradient import RowGradient, RowOrder, row_gradient
from fastdlrm.kernels.step_scalars import StepScalars

if has_gpu_kernels():
    from fastdlrm.kernels.cuda import row_update as gpu

RuleName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam"]


class UpdateRule(NamedTuple):
    """Which optimizer, and the numbers that stay the same at every step.

    Attributes:
        name: Of the rule.
        eps: Keeps the denominator from zero (not sgd).
        l2: Adds l2 * row to the gradient of each row.
        betas: Of adam.
    """

    name: RuleName
    eps: float = 1e-8
    l2: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)

    def zero_state(self, weight: Tensor) -> dict[str, Tensor]:
        """The rule's state before the first step, by name; the first dimension of each is R.

        float32 for tables of 16 bits too; where the weight is.
        """
        dtype = torch.promote_types(weight.dtype, torch.float32)
        shape = weight.shape[:1] if self.name == "rowwise_adagrad" else weight.shape
        state = {
            name: torch.zeros(
                shape, dtype=dtype, device=weight.device, pin_memory=weight.is_pinned()
            )
            for name in self.state_names
        }
        for tensor in state.values():
            advise_large_pages(tensor)
        return state

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state's tensors, in order."""
        names: dict[RuleName, tuple[str, ...]] = {
            "sgd": (),
            "adagrad": ("square_sum",),
            "rowwise_adagrad": ("square_sum",),
            "adam": ("first", "second"),
        }
        return names[self.name]


@torch.no_grad()
def update_rows_(
    weight: Tensor,
    state: dict[str, Tensor],
    grad_pooled: Tensor,
    order: RowOrder,
    rule: UpdateRule,
    scalars: Tensor,
) -> None:
    """Sum the gradient of each row that a batch read, and apply the rule to it.

    Args:
        weight: Shape (R, D).
        state: As `rule.zero_state` made it.
        grad_pooled: Gradient of each bag, shape (num_bags, D).
        order: The batch's ids.
        rule: Optimizer.
        scalars: Of this step, `StepScalars.tensor`.
    """
    if order.chunks is not None and weight.dtype != torch.float64:
        gpu.update_rows_(
            weight,
            list(state.values()),
            grad_pooled,
            order.rows,
            order.bags,
            order.factors,
            order.chunks,
            scalars,
            **rule._asdict(),
        )
        return
    constants = _constants(rule)
    tables = [weight, *state.values()]
    _update_rows_(tables, grad_pooled, *order[:3], rule.name, constants, scalars)


@torch.no_grad()
def apply_rule_(
    weight: Tensor,
    state: dict[str, Tensor],
    gradient: RowGradient,
    rule: UpdateRule,
    scalars: Tensor,
    mean_square: Tensor | None = None,
) -> None:
    """Apply the rule to a gradient that is summed already.

    Args:
        weight: Shape (R, D).
        state: As `rule.zero_state` made it.
        gradient: Of `weight`.
        rule: Optimizer.
        scalars: Of this step, `StepScalars.tensor`.
        mean_square: Of `scaled_gradient` over all D columns, shape (U,), for row-wise Adagrad
            where `weight` holds only some of them.
    """
    if mean_square is not None:
        _apply_rule_(weight, state, gradient, rule, scalars, mean_square)
    elif weight.device.type == "cpu":  # each row is a bag of its own
        bags = torch.arange(len(gradient.rows), dtype=torch.int32)
        # the kernel takes int32
        rows = gradient.rows.int() if len(weight) < 2**31 else gradient.rows
        order = RowOrder(rows, bags, None)
        update_rows_(weight, state, gradient.values, order, rule, scalars)
    else:
        _apply_rule_(weight, state, gradient, rule, scalars)


def _apply_rule_(
    weight: Tensor,
    state: dict[str, Tensor],
    gradient: RowGradient,
    rule: UpdateRule,
    scalars: Tensor,
    mean_square: Tensor | None = None,
) -> None:
    now = StepScalars(*scalars.tolist())
    gradient = scaled_gradient(weight, gradient, rule, now.gradient_scale)
    if rule.name == "sgd":
        sgd_update_(weight, gradient, now)
    elif rule.name == "adagrad":
        adagrad_update_(weight, state["square_sum"], gradient, now, eps=rule.eps)
    elif rule.name == "rowwise_adagrad":
        state_sum = state["square_sum"]
        rowwise_adagrad_update_(
            weight, state_sum, gradient, now, eps=rule.eps, mean_square=mean_square
        )
    else:
        first, second = state["first"], state["second"]
        adam_update_(weight, first, second, gradient, now, eps=rule.eps, betas=rule.betas)


@torch.no_grad()
def scaled_gradient(
    weight: Tensor, gradient: RowGradient, rule: UpdateRule, scale: float
) -> RowGradient:
    """What a rule is applied to: scale * g + l2 * w.

    Args:
        weight: Shape (R, D).
        gradient: Of `weight`.
        rule: Optimizer.
        scale: `StepScalars.gradient_scale`.
    """
    rows, values = gradient
    if scale != 1:
        values = values * scale
    if rule.l2:
        values = values.add(_read_rows(weight, rows), alpha=rule.l2)
    return RowGradient(rows, values)


@torch.no_grad()
def sgd_update_(weight: Tensor, gradient: RowGradient, now: StepScalars) -> None:
    """w -= lr g.

    Args:
        weight: Shape (R, D).
        gradient: Of `weight`.
        now: This step's numbers; lr among them.
    """
    rows, values = gradient
    moved = _read_rows(weight, rows).add_(values, alpha=-now.learning_rate)
    write_rows_(weight, rows, moved, int(now.rounding_seed))


@torch.no_grad()
def adagrad_update_(
    weight: Tensor,
    square_sum: Tensor,
    gradient: RowGradient,
    now: StepScalars,
    *,
    eps: float,
) -> None:
    """s += g^2; w -= lr g / (sqrt(s) + eps), number by number.

    Args:
        weight: Shape (R, D).
        square_sum: s, shape (R, D).
        gradient: Of `weight`.
        now: This step's numbers; lr among them.
        eps: Keeps the denominator from zero.

    Source: Duchi et al. 2011, JMLR 12.
    """
    rows, values = gradient
    new_sum = square_sum.index_select(0, rows).addcmul_(values, values)
    square_sum.index_copy_(0, rows, new_sum)
    moved = _read_rows(weight, rows)
    moved.addcdiv_(values, new_sum.sqrt_().add_(eps), value=-now.learning_rate)
    write_rows_(weight, rows, moved, int(now.rounding_seed))


@torch.no_grad()
def rowwise_adagrad_update_(
    weight: Tensor,
    square_sum: Tensor,
    gradient: RowGradient,
    now: StepScalars,
    *,
    eps: float,
    mean_square: Tensor | None = None,
) -> None:
    """s += mean of g^2 over D; w -= lr g / (sqrt(s) + eps), with one s a row.

    Args:
        weight: Shape (R, D).
        square_sum: s, shape (R,).
        gradient: Of `weight`.
        now: This step's numbers; lr among them.
        eps: Keeps the denominator from zero.
        mean_square: The mean of g^2, shape (U,), where `gradient` lacks some of the columns.

    Source: the row-wise sparse Adagrad of the DLRM reference implementation.
    """
    rows, values = gradient
    added = values.square().mean(1) if mean_square is None else mean_square
    new_sum = square_sum.index_select(0, rows).add_(added)
    square_sum.index_copy_(0, rows, new_sum)
    moved = _read_rows(weight, rows)
    moved.addcdiv_(values, new_sum.sqrt_().add_(eps).unsqueeze(1), value=-now.learning_rate)
    write_rows_(weight, rows, moved, int(now.rounding_seed))


@torch.no_grad()
def adam_update_(
    weight: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: RowGradient,
    now: StepScalars,
    *,
    eps: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> None:
    """Lazy Adam: m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr m' / (sqrt(v') + eps).

    m' = m / (1 - b1^t) and v' = v / (1 - b2^t), where t counts the optimizer's steps, not the
    row's: where every row is in every batch this is Adam.

    Args:
        weight: Shape (R, D).
        first: m, shape (R, D).
        second: v, shape (R, D).
        gradient: Of `weight`.
        now: This step's numbers; lr among them.
        eps: Keeps the denominator from zero.
        betas: b1 and b2.

    Source: Kingma and Ba 2015, arXiv:1412.6980; bias correction as in torch.optim.SparseAdam.
    """
    rows, values = gradient
    b1, b2 = betas
    new_first = first.index_select(0, rows).lerp_(values, 1 - b1)
    first.index_copy_(0, rows, new_first)
    new_second = second.index_select(0, rows).mul_(b2).addcmul_(values, values, value=1 - b2)
    second.index_copy_(0, rows, new_second)
    denominator = new_second.sqrt_().div_(math.sqrt(now.second_correction)).add_(eps)
    moved = _read_rows(weight, rows)
    moved.addcdiv_(new_first, denominator, value=-now.learning_rate / now.first_correction)
    write_rows_(weight, rows, moved, int(now.rounding_seed))


@torch.no_grad()
def write_rows_(weight: Tensor, rows: Tensor, values: Tensor, rounding_seed: int = 0) -> None:
    """Write rows; to bf16 they are rounded up or down by chance, right on average.

    A step is often smaller than half the distance to the next bf16 number; rounding to the nearest
    would lose it every time. The chance is a hash of (seed, row, column): the same on every device
    and at every run.

    Args:
        weight: Shape (R, D).
        rows: Each once, shape (U,), int64.
        values: Shape (U, D), float32, or `weight`'s type.
        rounding_seed: Another one each step.
    """
    if weight.dtype == torch.bfloat16:
        values = _round_stochastically(values, rows, rounding_seed)
    weight.index_copy_(0, rows, values.to(weight.dtype))


def _read_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """A copy of rows, in float32 at least."""
    return weight.index_select(0, rows).to(torch.promote_types(weight.dtype, torch.float32))


def _round_stochastically(values: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Add a number below one unit of the last bf16 place, then cut: exact for `.bfloat16()`."""
    dim = values.shape[1]
    places = rows.unsqueeze(1) * dim + torch.arange(dim, device=rows.device)
    noise = hash32(hash32(places & 0xFFFFFFFF) ^ (seed & 0xFFFFFFFF)) & 0xFFFF
    bits = values.contiguous().view(torch.int32).long() + noise
    cut = (bits & ~0xFFFF).to(torch.int32)
    return cut.view(torch.float32)


def hash32(x: Tensor) -> Tensor:
    """Mix 32 bits, held in int64, well enough for rounding.

    Source: the finaliser of MurmurHash3, Austin Appleby, public domain.
    """
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ (x >> 16)


@lru_cache(maxsize=64)
def _constants(rule: UpdateRule) -> Tensor:
    """What the operator takes of a rule besides its name: eps, l2, b1, b2."""
    with torch.inference_mode(False):
        return torch.tensor((rule.eps, rule.l2, *rule.betas), dtype=torch.float64)


@torch.no_grad()
def define_update_rows_(
    tables: Sequence[Tensor],
    grad_pooled: Tensor,
    rows: Tensor,
    bags: Tensor,
    factors: Tensor | None,
    name: RuleName,
    constants: Tensor,
    scalars: Tensor,
) -> None:
    """The definition of the operator.

    Args:
        tables: The weight, then the state in the order of the rule's names.
        grad_pooled: Gradient of each bag.
        rows: As in `RowOrder`; `bags` and `factors` likewise.
        bags: Bag of each id.
        factors: Factor of each id.
        name: Of the rule.
        constants: Its eps, l2, b1, b2.
        scalars: Of this step.
    """
    eps, l2, b1, b2 = constants.tolist()
    rule = UpdateRule(name, eps, l2, (b1, b2))
    weight, *state = tables
    named = dict(zip(rule.state_names, state, strict=True))
    gradient = row_gradient(grad_pooled, RowOrder(rows, bags, factors))
    _apply_rule_(weight, named, gradient, rule, scalars)


_update_rows_ = define(
    "update_rows_(Tensor(a!)[] tables, Tensor grad_pooled, Tensor rows, Tensor bags,"
    " Tensor? factors, str name, Tensor constants, Tensor scalars) -> ()",
    define_update_rows_,
    fake=lambda *args: None,
)
implement("update_rows_", "cpu", on_first_call("fastdlrm.kernels.cpu.row_update", "update_rows_"))
