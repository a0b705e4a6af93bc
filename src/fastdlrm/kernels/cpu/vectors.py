"""Intrinsics on sixteen numbers at once.

By itself LLVM goes one by one: it cannot know that a row that is read and a sum that is written do
not overlap. Arguments are addresses (int64) and numbers.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16
"""Numbers of a block; the compiler cuts it into what the processor has."""

_CONTRACT = ("contract",)
"""A product and a sum may become one operation, where the processor has it."""

Emit = Callable[..., None]


def _taking(*kinds: Any) -> Callable[[Emit], Any]:
    """An intrinsic of two to four arguments of these types; a float32 comes sixteen times over."""

    def make(emit: Emit) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            given = zip(args, kinds, strict=True)
            emit(builder, *(_repeated(builder, x) if k is types.float32 else x for x, k in given))
            return context.get_dummy_value()

        @intrinsic
        def two(typingctx: Any, a: Any, b: Any) -> Any:
            return types.void(*kinds), codegen

        @intrinsic
        def three(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
            return types.void(*kinds), codegen

        @intrinsic
        def four(typingctx: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
            return types.void(*kinds), codegen

        return {2: two, 3: three, 4: four}[len(kinds)]

    return make


def _vector(element: Any, lanes: int = LANES) -> Any:
    return ir.VectorType(element, lanes)


_BYTE, _HALF, _WORD, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def _load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def _repeated(builder: Any, scalar: Any) -> Any:
    kind = _vector(scalar.type)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_vector(_WORD), [0] * LANES))


def _constant(element: Any, value: int, lanes: int = LANES) -> Any:
    return ir.Constant(_vector(element, lanes), [value] * lanes)


def _add_to(builder: Any, numbers: Any, target: Any) -> None:
    sums = _load(builder, target, _vector(_FLOAT), 4)
    _store(builder, builder.fadd(sums, numbers, flags=_CONTRACT), target, 4)


@_taking(types.int64, types.float32, types.int64)
def add_int8(builder: Any, codes: Any, scale: Any, sums: Any) -> None:
    """Add scale * code to each of sixteen float32 sums."""
    narrow = _load(builder, codes, _vector(_BYTE), 1)
    numbers = builder.sitofp(builder.sext(narrow, _vector(_WORD)), _vector(_FLOAT))
    _add_to(builder, builder.fmul(numbers, scale, flags=_CONTRACT), sums)


@_taking(types.int64, types.float32, types.float32, types.int64)
def add_int4(builder: Any, codes: Any, scale: Any, offset: Any, sums: Any) -> None:
    """Add offset + scale * code to each of sixteen float32 sums; a byte's low half comes first."""
    half = LANES // 2
    pairs = _load(builder, codes, _vector(_BYTE, half), 1)
    low = builder.and_(pairs, _constant(_BYTE, 15, half))
    high = builder.lshr(pairs, _constant(_BYTE, 4, half))
    order = [i // 2 + half * (i % 2) for i in range(LANES)]
    narrow = builder.shuffle_vector(low, high, ir.Constant(_vector(_WORD), order))
    numbers = builder.sitofp(builder.zext(narrow, _vector(_WORD)), _vector(_FLOAT))
    scaled = builder.fmul(numbers, scale, flags=_CONTRACT)
    _add_to(builder, builder.fadd(scaled, offset, flags=_CONTRACT), sums)


@_taking(types.float32, types.int64)
def fill(builder: Any, number: Any, sums: Any) -> None:
    """Set sixteen float32 sums, as one store: a sum is then not read before it is there."""
    _store(builder, number, sums, 4)


@_taking(types.int64, types.int64)
def round_to_bf16(builder: Any, numbers: Any, halves: Any) -> None:
    """Store the nearest bfloat16 of sixteen float32 numbers, of two the even one."""
    floats = _load(builder, numbers, _vector(_FLOAT), 4)
    bits = builder.bitcast(floats, _vector(_WORD))
    shift = _constant(_WORD, 16)
    odd = builder.and_(builder.lshr(bits, shift), _constant(_WORD, 1))
    raised = builder.add(builder.add(bits, _constant(_WORD, 0x7FFF)), odd)
    rounded = builder.trunc(builder.lshr(raised, shift), _vector(_HALF))
    is_nan = builder.fcmp_unordered("uno", floats, floats)
    _store(builder, builder.select(is_nan, _constant(_HALF, 0x7FC0), rounded), halves, 2)
