"""Dot interaction in one kernel a direction; the forward can read the tables' rows itself.

A program holds a sample's vectors as tiles of V x D, multiplies them by their transpose on the
tensor cores and writes the lower triangle: neither the products nor, with single ids, a separate
copy of the lookup's result go through memory before they are used.

Shapes as in `fastdlrm.kernels.interaction`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdlrm.kernels.library import implement

MAX_TILE = 64
"""Vectors a tile; more vectors take several tiles."""


@triton.jit
def _place(i, j, DIAGONAL: tl.constexpr):
    """Position of pair (i, j), i the larger, among the pairs."""
    return i * (i + 1) // 2 + j if DIAGONAL else i * (i - 1) // 2 + j


@triton.jit
def _vectors(
    dense, pooled, weight, rows, sample, num_samples, dense_stride, stride_f, stride_b, v, d,
    V: tl.constexpr, D: tl.constexpr, HAS_DENSE: tl.constexpr, GATHER: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The vectors v of a sample, columns d; zeros beyond V and D."""
    feature = v - HAS_DENSE
    is_feature = (feature >= 0) & (v < V)
    mask = is_feature[:, None] & (d < D)[None, :]
    if GATHER:
        row = tl.load(rows + feature * num_samples + sample, mask=is_feature, other=0)
        place = row.to(tl.int64)[:, None] * D + d[None, :]
        x = tl.load(weight + place, mask=mask, other=0.0).to(DTYPE)
    else:
        place = feature.to(tl.int64)[:, None] * stride_f + sample * stride_b + d[None, :]
        x = tl.load(pooled + place, mask=mask, other=0.0).to(DTYPE)
    if HAS_DENSE:
        vector = tl.load(dense + sample * dense_stride + d, mask=d < D, other=0.0).to(DTYPE)
        x = tl.where((v == 0)[:, None], vector[None, :], x)
    return x


@triton.jit
def _interaction_forward_kernel(
    dense, pooled, weight, rows, out, num_samples, dense_stride, stride_f, stride_b, width,
    V: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
    NUM_TILES: tl.constexpr, HAS_DENSE: tl.constexpr, DIAGONAL: tl.constexpr, GATHER: tl.constexpr,
    NUM_PADS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (b, t): pairs of sample b whose larger vector is in tile t."""
    sample = tl.program_id(0).to(tl.int64)
    tile = 0 if NUM_TILES == 1 else tl.program_id(1)
    i, d, c = tile * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK_D), tl.arange(0, TILE)
    x = _vectors(dense, pooled, weight, rows, sample, num_samples, dense_stride, stride_f, stride_b,
                 i, d, V, D, HAS_DENSE, GATHER, DTYPE)  # fmt: skip
    start = out + sample * width
    first: tl.constexpr = D if HAS_DENSE else 0
    if tile == 0:
        if HAS_DENSE:
            vector = tl.load(dense + sample * dense_stride + d, mask=d < D, other=0.0)
            tl.store(start + d, vector.to(DTYPE), mask=d < D)
        if NUM_PADS > 0:
            pad = tl.arange(0, triton.next_power_of_2(NUM_PADS))
            tl.store(start + width - NUM_PADS + pad, tl.zeros_like(pad).to(DTYPE), pad < NUM_PADS)
    for other in tl.static_range(NUM_TILES):
        if other <= tile:
            j = other * TILE + c
            y = x
            if NUM_TILES > 1:
                y = _vectors(dense, pooled, weight, rows, sample, num_samples, dense_stride,
                             stride_f, stride_b, j, d, V, D, HAS_DENSE, GATHER, DTYPE)  # fmt: skip
            z = tl.dot(x, tl.trans(y), input_precision=PRECISION)
            pair = _place(i[:, None], j[None, :], DIAGONAL)
            is_pair = (i[:, None] >= j[None, :]) if DIAGONAL else (i[:, None] > j[None, :])
            tl.store(start + first + pair, z.to(DTYPE), mask=is_pair & (i < V)[:, None])


@triton.jit
def _interaction_backward_kernel(
    grad, dense, pooled, weight, rows, grad_dense, grad_pooled, num_samples, grad_stride,
    dense_stride, stride_f, stride_b,
    V: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
    NUM_TILES: tl.constexpr, HAS_DENSE: tl.constexpr, DIAGONAL: tl.constexpr, GATHER: tl.constexpr,
    SCATTER: tl.constexpr, RELU: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (b, t): gradients of the vectors of sample b in tile t.

    d<e_i, e_j> = <de_i, e_j> + <e_i, de_j>: row i of the gradients is the symmetric matrix of the
    pairs' gradients times all vectors. With RELU the dense vector's gradient is passed on through
    the ReLU that made it; with SCATTER a pooled vector's goes to the row it was read from.
    """
    sample = tl.program_id(0).to(tl.int64)
    tile = 0 if NUM_TILES == 1 else tl.program_id(1)
    i, d, c = tile * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK_D), tl.arange(0, TILE)
    start = grad + sample * grad_stride
    first: tl.constexpr = D if HAS_DENSE else 0
    total = tl.zeros((TILE, BLOCK_D), tl.float32)
    for other in tl.static_range(NUM_TILES):
        j = other * TILE + c
        y = _vectors(dense, pooled, weight, rows, sample, num_samples, dense_stride, stride_f,
                     stride_b, j, d, V, D, HAS_DENSE, GATHER, DTYPE)  # fmt: skip
        high, low = tl.maximum(i[:, None], j[None, :]), tl.minimum(i[:, None], j[None, :])
        is_pair = high < V
        if not DIAGONAL:
            is_pair = is_pair & (high != low)
        g = tl.load(start + first + _place(high, low, DIAGONAL), mask=is_pair, other=0.0)
        if DIAGONAL:
            g = tl.where(high == low, 2 * g, g)
        total = tl.dot(g.to(DTYPE), y, acc=total, input_precision=PRECISION)
    if HAS_DENSE:
        if tile == 0:
            own = tl.sum(tl.where((i == 0)[:, None], total, 0.0), 0)
            own += tl.load(start + d, mask=d < D, other=0.0).to(tl.float32)
            if RELU:
                vector = tl.load(dense + sample * dense_stride + d, mask=d < D, other=0.0)
                own = tl.where(vector > 0, own, 0.0)
            tl.store(grad_dense + sample * D + d, own.to(DTYPE), mask=d < D)
    feature = i - HAS_DENSE
    is_feature = (feature >= 0) & (i < V)
    bag = feature.to(tl.int64) * num_samples + sample
    if SCATTER:
        bag = tl.load(rows + bag, mask=is_feature, other=0).to(tl.int64)
    place = bag[:, None] * D + d[None, :]
    tl.store(grad_pooled + place, total.to(DTYPE), mask=is_feature[:, None] & (d < D)[None, :])


def dot_interaction(
    dense: Tensor | None, pooled: Tensor, include_diagonal: bool, width: int
) -> Tensor:
    """As the definition."""
    source = _Source(pooled.shape, pooled.dtype, pooled=_last_dim_dense(pooled))
    return _forward(source, dense, include_diagonal, width)


def dot_interaction_backward(
    grad: Tensor, dense: Tensor | None, pooled: Tensor, include_diagonal: bool, relu: bool
) -> tuple[Tensor, Tensor]:
    """As the definition."""
    source = _Source(pooled.shape, pooled.dtype, pooled=_last_dim_dense(pooled))
    return _backward(source, grad, dense, include_diagonal, relu)


def lookup_dot_interaction(
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    """As the definition."""
    shape = (len(rows) // num_features, num_features, weight.shape[1])
    source = _Source(shape, dtype, weight=weight, rows=rows)
    return _forward(source, dense, include_diagonal, width)


def lookup_dot_interaction_backward(
    grad: Tensor,
    weight: Tensor,
    rows: Tensor,
    dense: Tensor | None,
    num_features: int,
    include_diagonal: bool,
    relu: bool,
    scatter_rows: int,
) -> tuple[Tensor, Tensor]:
    """As the definition."""
    shape = (len(rows) // num_features, num_features, weight.shape[1])
    source = _Source(shape, grad.dtype, weight=weight, rows=rows)
    return _backward(source, grad, dense, include_diagonal, relu, scatter_rows)


class _Source(NamedTuple):
    """Where the pooled vectors come from: a tensor, or rows of the tables.

    Attributes:
        shape: (B, F, D).
        dtype: Of the products.
        pooled: Of that shape, the last dimension dense in memory.
        weight: Shape (R, D), where there is no `pooled`.
        rows: Shape (F * B,), likewise.
    """

    shape: Sequence[int]
    dtype: torch.dtype
    pooled: Tensor | None = None
    weight: Tensor | None = None
    rows: Tensor | None = None

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Pooled, weight, rows and the strides of a feature and of a sample; fillers where none."""
        if self.weight is not None and self.rows is not None:
            return self.weight, self.weight, self.rows, 0, 0
        assert self.pooled is not None
        pooled = self.pooled
        return pooled, pooled, pooled, pooled.stride(1), pooled.stride(0)


def _forward(source: _Source, dense: Tensor | None, diagonal: bool, width: int) -> Tensor:
    B, num_features, D = source.shape
    V = num_features + (dense is not None)
    pairs = V * (V + (1 if diagonal else -1)) // 2
    natural = pairs + (0 if dense is None else D)
    width = max(width, natural)
    pooled, weight, rows, stride_f, stride_b = source.arguments()
    out = torch.empty(B, width, dtype=source.dtype, device=rows.device)
    if not B:
        return out
    tile, num_tiles, block_d = _tiles(V, D)
    vector, dense_stride = _dense(dense, out)
    _interaction_forward_kernel[(B, num_tiles)](
        vector, pooled, weight, rows, out, B, dense_stride, stride_f, stride_b, width, V, D, tile,
        block_d, num_tiles, dense is not None, diagonal, source.pooled is None, width - natural,
        _triton_type(source.dtype), _precision(source.dtype), num_warps=_warps(tile),
    )  # fmt: skip
    return out


def _backward(
    source: _Source,
    grad: Tensor,
    dense: Tensor | None,
    diagonal: bool,
    relu: bool,
    scatter_rows: int = 0,
) -> tuple[Tensor, Tensor]:
    B, num_features, D = source.shape
    V = num_features + (dense is not None)
    grad = _last_dim_dense(grad)
    if scatter_rows:
        allocate = torch.empty if scatter_rows == num_features * B else torch.zeros
        grad_pooled = allocate(scatter_rows, D, dtype=source.dtype, device=grad.device)
    else:
        feature_major = torch.empty(num_features, B, D, dtype=source.dtype, device=grad.device)
        grad_pooled = feature_major.transpose(0, 1)
    grad_dense = torch.empty(
        (0,) if dense is None else (B, D), dtype=source.dtype, device=grad.device
    )
    if not B:
        return grad_dense, grad_pooled
    pooled, weight, rows, stride_f, stride_b = source.arguments()
    tile, num_tiles, block_d = _tiles(V, D)
    vector, dense_stride = _dense(dense, grad)
    _interaction_backward_kernel[(B, num_tiles)](
        grad, vector, pooled, weight, rows, grad_dense, grad_pooled, B, grad.stride(0),
        dense_stride, stride_f, stride_b, V, D, tile, block_d, num_tiles, dense is not None,
        diagonal, source.pooled is None, scatter_rows > 0, relu, _triton_type(source.dtype),
        _precision(source.dtype), num_warps=_warps(tile),
    )  # fmt: skip
    return grad_dense, grad_pooled


def _dense(dense: Tensor | None, unused: Tensor) -> tuple[Tensor, int]:
    """The dense vectors and the stride of a sample; any tensor where there are none."""
    if dense is None:
        return unused, 0
    dense = _last_dim_dense(dense)
    return dense, dense.stride(0)


def _last_dim_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _tiles(num_vectors: int, dim: int) -> tuple[int, int, int]:
    """Vectors a tile, tiles a sample, columns a tile; a tensor core takes 16 at least."""
    tile = min(max(16, triton.next_power_of_2(num_vectors)), MAX_TILE)
    return tile, triton.cdiv(num_vectors, tile), max(16, triton.next_power_of_2(dim))


def _warps(tile: int) -> int:
    return 4 if tile <= 32 else 8


def _triton_type(dtype: torch.dtype) -> tl.dtype:
    return {
        torch.float32: tl.float32,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }[dtype]


def _precision(dtype: torch.dtype) -> str:
    """Of the products of float32: exact, or tf32 where torch's own matrix products are."""
    is_exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if dtype == torch.float32 and is_exact else "tf32"


implement("dot_interaction", "cuda", dot_interaction)
implement("dot_interaction_backward", "cuda", dot_interaction_backward)
implement("lookup_dot_interaction", "cuda", lookup_dot_interaction)
implement("lookup_dot_interaction_backward", "cuda", lookup_dot_interaction_backward)
