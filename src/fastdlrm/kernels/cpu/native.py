"""What compiled kernels need and Numba does not offer: pointers, an atomic counter, prefetching.

A kernel gets one address, of a block of int64 numbers: pointers to tensors, their sizes and bits of
float64 numbers. All its threads run it with the same block and take pieces of the work by
`next_piece`, so which thread does which piece is left to chance; results must not depend on it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

COMPILE: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
}
"""How kernels are compiled: sums may be reordered; NaN and infinity keep their meaning."""

INLINE = {**COMPILE, "forceinline": True}
"""Of functions inside a kernel's loops: a call hands over every array in seven numbers, which for a
short row takes longer than the work."""


def _typed_pointer(element: Any) -> Any:
    """An intrinsic that takes an address and gives a pointer to one kind of number."""

    @intrinsic
    def pointer(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), codegen

    return pointer


_float32_pointer = _typed_pointer(types.float32)
_float64_pointer = _typed_pointer(types.float64)
_int8_pointer = _typed_pointer(types.int8)
_uint8_pointer = _typed_pointer(types.uint8)
_uint16_pointer = _typed_pointer(types.uint16)
_int32_pointer = _typed_pointer(types.int32)
_int64_pointer = _typed_pointer(types.int64)


@intrinsic
def _fetch_add(typingctx: Any, address: Any) -> Any:
    """Add one to an int64 in memory, atomically; gives what it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), codegen


def _prefetching(is_write: bool) -> Any:
    """An intrinsic that asks for the cache line at an address."""

    @intrinsic
    def ask(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
            read_write, keep, data = (ir.Constant(word, value) for value in (int(is_write), 3, 1))
            builder.call(function, [builder.inttoptr(args[0], byte), read_write, keep, data])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return ask


prefetch = _prefetching(is_write=True)
"""Ask for the cache line at an address, soon to be read and written."""

prefetch_to_read = _prefetching(is_write=False)
"""Likewise, to be read alone: a line that other cores hold stays with them."""


def _reinterpretation(source: Any, target: Any) -> Any:
    """An intrinsic that takes a number's bits for another kind of number."""

    @intrinsic
    def reinterpret(typingctx: Any, number: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(signature.return_type))

        return target(source), codegen

    return reinterpret


float32_bits = _reinterpretation(types.float32, types.uint32)
bits_float32 = _reinterpretation(types.uint32, types.float32)


@intrinsic
def float32_scratch(typingctx: Any, count: Any) -> Any:
    """Address of so many numbers on the stack of the function that calls this; not for loops.

    An array of Numba's own would be counted, atomically, wherever it is passed on.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.alloca(ir.FloatType(), size=args[0])
        place.align = 64
        return builder.ptrtoint(place, ir.IntType(64))

    return types.int64(types.int64), codegen


LANES = 16
"""Columns that `times_columns` takes at once."""


@intrinsic
def times_columns(
    typingctx: Any, vector: Any, columns: Any, stride: Any, dim: Any, target: Any
) -> Any:
    """A vector of `dim` numbers times `LANES` columns of a matrix of `dim` rows, by address.

    LLVM itself would add up each product's numbers across the lanes, which for a short vector takes
    longer than multiplying. `stride` is the numbers from one row of the matrix to the next.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, columns, stride, dim, target = args
        number, lanes = ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)

        def place(base: Any, index: Any, kind: Any) -> Any:
            address = builder.add(base, builder.shl(index, ir.Constant(index.type, 2)))
            return builder.inttoptr(address, kind.as_pointer())

        total = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * LANES))
        with cgutils.for_range(builder, dim) as loop:
            one = builder.load(place(vector, loop.index, number), align=4)
            row = builder.load(place(columns, builder.mul(loop.index, stride), lanes), align=4)
            first = builder.insert_element(
                ir.Constant(lanes, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)
            )
            same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            every = builder.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), same)
            product = builder.fmul(every, row, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        zero = ir.Constant(target.type, 0)
        builder.store(builder.load(total), place(target, zero, lanes), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@njit(**INLINE)
def floats(address: int, count: int) -> np.ndarray:
    """The float32 numbers at an address.

    An index into an array of one row is never negative; into one of the whole table Numba asks at
    every number whether it is.
    """
    return carray(_float32_pointer(address), count)


@njit(**INLINE)
def doubles(address: int, count: int) -> np.ndarray:
    """The float64 numbers at an address."""
    return carray(_float64_pointer(address), count)


@njit(**INLINE)
def halves(address: int, count: int) -> np.ndarray:
    """The bits of the bfloat16 numbers at an address."""
    return carray(_uint16_pointer(address), count)


@njit(**INLINE)
def octets(address: int, count: int) -> np.ndarray:
    """The bytes at an address."""
    return carray(_uint8_pointer(address), count)


@njit(**INLINE)
def signed_octets(address: int, count: int) -> np.ndarray:
    """The int8 numbers at an address."""
    return carray(_int8_pointer(address), count)


@njit(**INLINE)
def ints(address: int, count: int) -> np.ndarray:
    """The int32 numbers at an address."""
    return carray(_int32_pointer(address), count)


@njit(**INLINE)
def longs(address: int, count: int) -> np.ndarray:
    """The int64 numbers at an address."""
    return carray(_int64_pointer(address), count)


@njit(**INLINE)
def block_of(address: int, size: int) -> np.ndarray:
    """The block as an array."""
    return longs(address, size)


@njit(**INLINE)
def next_piece(address: int) -> int:
    """The number of the next piece nobody has taken; the block's first number counts them."""
    return _fetch_add(address)


@njit(**INLINE)
def from_bf16(bits: np.uint16) -> np.float32:
    """The number that bfloat16 bits stand for."""
    return bits_float32(np.uint32(bits) << np.uint32(16))


@njit(**INLINE)
def to_bf16(number: np.float32) -> np.uint16:
    """Bits of the nearest bfloat16, of two the even one."""
    bits = float32_bits(number)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    is_nan = number != number
    return np.uint16(0x7FC0) if is_nan else np.uint16(rounded >> np.uint32(16))
