"""The MLPs' optimizer in one kernel: gradient in, parameters and their copy in 16 bits out."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _dense_update_kernel(
    master, compute, gradient, first, second, scalars, size, eps, weight_decay, beta1, beta2,
    RULE: tl.constexpr, HAS_DECAY: tl.constexpr, HAS_COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    rate = tl.load(scalars)
    w = tl.load(master + i, mask=mask, other=0.0)
    g = tl.load(gradient + i, mask=mask, other=0.0) * tl.load(scalars + 3)
    if HAS_DECAY:
        if RULE == "adamw":
            w *= 1 - rate * weight_decay
        else:
            g += weight_decay * w
    if RULE == "sgd":
        w -= rate * g
    elif RULE == "adagrad":
        s = tl.load(first + i, mask=mask, other=1.0) + g * g
        tl.store(first + i, s, mask=mask)
        w -= rate * g / (tl.sqrt_rn(s) + eps)
    else:
        m = tl.load(first + i, mask=mask, other=0.0)
        m += (1 - beta1) * (g - m)
        v = tl.load(second + i, mask=mask, other=1.0) * beta2 + (1 - beta2) * g * g
        tl.store(first + i, m, mask=mask)
        tl.store(second + i, v, mask=mask)
        denominator = tl.sqrt_rn(v) / tl.sqrt_rn(tl.load(scalars + 2)) + eps
        w -= rate / tl.load(scalars + 1) * m / denominator
    tl.store(master + i, w, mask=mask)
    if HAS_COPY:
        tl.store(compute + i, w.to(compute.dtype.element_ty), mask=mask)


def dense_update_(
    master: Tensor,
    compute: Tensor | None,
    state: list[Tensor],
    gradient: Tensor,
    scalars: Tensor,
    *,
    name: str,
    eps: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> None:
    """As `fastdlrm.kernels.dense_update.dense_update_`."""
    first, second = [*state, master, master][:2]
    size = master.numel()
    _dense_update_kernel[(triton.cdiv(size, BLOCK),)](
        master, master if compute is None else compute, gradient, first, second, scalars, size, eps,
        weight_decay, *betas, name, weight_decay != 0, compute is not None, BLOCK,
    )  # fmt: skip
