"""Sixteen numbers at a time: the least of a block, and the first that is low enough, without a branch.

A branch on a number that nobody can foresee is guessed wrongly every other time, which takes longer than
sixteen comparisons at once. Where Numba is switched off, the same functions do it in plain Python.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from splitgym.sim.compiled.reach import IN_PYTHON, long_at, put_real, real_at

FAN_BITS = 4
FAN = 1 << FAN_BITS
SAFE = 1.0 - 1e-9
"""Bounds are lowered by more than what rounding may have raised them."""
EMPTY = 1e300
"""KV tokens expected where there is no machine: in sums it does not become infinite."""

_BITS = ir.IntType(FAN)
_LONG, _REAL = ir.IntType(64), ir.DoubleType()


if IN_PYTHON:

    def opaque(number: Any) -> Any:
        """The number itself; see below."""
        return number

else:

    @intrinsic
    def opaque(typing: Any, number: Any) -> Any:
        """The number itself, of which the compiler knows nothing, so that it makes no branch of it."""

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(_LONG, [_LONG])
            return builder.asm(kind, "", "=r,0", arguments, False)

        return types.int64(types.int64), code


def _splat(builder: Any, number: Any) -> Any:
    """LLVM: a number sixteen times."""
    row = ir.VectorType(number.type, FAN)
    single = builder.insert_element(ir.Constant(row, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), FAN), [0] * FAN)
    return builder.shuffle_vector(single, ir.Constant(row, ir.Undefined), zeros)


def _row(builder: Any, address: Any, place: Any, kind: Any) -> Any:
    """LLVM: sixteen numbers of an array, from a place on."""
    start = builder.add(address, builder.mul(place, place.type(8)))
    return builder.load(builder.inttoptr(start, ir.VectorType(kind, FAN).as_pointer()), align=8)


def blockwise(kind: Any, scalar: Callable[..., Any], formula: Callable[..., Any]) -> tuple[Any, Any]:
    """Functions over the sixteen numbers that a formula makes of up to three arrays and a factor.

    Args:
        kind: int64 or float64, of the numbers.
        scalar: the formula in Python, `scalar(a, b, c, place, factor)`: addresses of arrays, and a place.
        formula: the same for LLVM, `formula(builder, row, (a, b, c), factor)` with `row(address)`.

    Returns:
        `least(a, b, c, first, factor)`, the least from place `first` on; and
        `within(a, b, c, first, factor, most, after)`: the first one that is at most `most`, as its place
        from `first` on (0 to 15) and not before `after`; 16 or more where there is none.
    """
    if IN_PYTHON:

        def least_in_python(a: Any, b: Any, c: Any, first: Any, factor: Any) -> Any:
            return min(scalar(a, b, c, first + i, factor) for i in range(FAN))

        def within_in_python(a: Any, b: Any, c: Any, first: Any, factor: Any, most: Any, after: Any) -> Any:
            places = (i for i in range(after, FAN) if scalar(a, b, c, first + i, factor) <= most)
            return next(places, FAN)

        return least_in_python, within_in_python
    number = _LONG if kind is types.int64 else _REAL
    vector = ir.VectorType(number, FAN)

    def numbers(builder: Any, arguments: Any) -> Any:
        a, b, c, first, factor = arguments[:5]
        return formula(builder, lambda address: _row(builder, address, first, number), (a, b, c), factor)

    @intrinsic
    def least(typing: Any, a: Any, b: Any, c: Any, first: Any, factor: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            name = "smin.v16i64" if number is _LONG else "fmin.v16f64"
            shape = ir.FunctionType(number, [vector])
            reduce = cgutils.get_or_insert_function(builder.module, shape, f"llvm.vector.reduce.{name}")
            flags = () if number is _LONG else ("nnan", "nsz")
            return builder.call(reduce, [numbers(builder, arguments)], fastmath=flags)

        return kind(types.int64, types.int64, types.int64, types.int64, types.float64), code

    @intrinsic
    def within(typing: Any, a: Any, b: Any, c: Any, first: Any, factor: Any, most: Any, after: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, limit, after = numbers(builder, arguments), _splat(builder, arguments[5]), arguments[6]
            compare = builder.icmp_signed if number is _LONG else builder.fcmp_ordered
            found = builder.zext(builder.bitcast(compare("<=", row, limit), _BITS), _LONG)
            later = builder.shl(ir.Constant(_LONG, -1), after)
            # A bit behind the sixteen stands for none.
            found = builder.or_(builder.and_(found, later), ir.Constant(_LONG, 1 << FAN))
            return builder.cttz(found, ir.Constant(ir.IntType(1), 1))

        where = (types.int64, types.int64, types.int64, types.int64, types.float64, kind, types.int64)
        return types.int64(*where), code

    return least, within


least_long, long_within = blockwise(
    types.int64,
    lambda a, b, c, place, factor: long_at(a, place),
    lambda builder, row, arrays, factor: row(arrays[0]),
)
"""Of an array `a` of integers."""


def _bound(builder: Any, row: Any, arrays: Any, factor: Any) -> Any:
    low, high = row(arrays[0]), row(arrays[1])
    middle = builder.fadd(low, builder.fmul(builder.fsub(high, low), _splat(builder, factor)))
    return builder.fmul(middle, _splat(builder, ir.Constant(_REAL, SAFE)))


def _plain_bound(a: Any, b: Any, c: Any, place: Any, factor: Any) -> Any:
    low = real_at(a, place)
    return (low + (real_at(b, place) - low) * factor) * SAFE


least_bound, bound_within = blockwise(types.float64, _plain_bound, _bound)
"""Of what lies between two bounds, `a` and `b`, at a share `factor` of the way, lowered a little."""


def _floor(builder: Any, row: Any, arrays: Any, factor: Any) -> Any:
    expected = builder.fadd(row(arrays[0]), builder.fmul(row(arrays[1]), _splat(builder, factor)))
    used = row(arrays[2])
    return builder.select(builder.fcmp_ordered(">", used, expected), used, expected)


def _plain_floor(a: Any, b: Any, c: Any, place: Any, factor: Any) -> Any:
    return max(real_at(c, place), real_at(a, place) + real_at(b, place) * factor)


least_floor, floor_within = blockwise(types.float64, _plain_floor, _floor)
"""Of tokens `a` and `factor` tokens for each of `b` requests, or `c` where this is more."""

least_real, _ = blockwise(
    types.float64,
    lambda a, b, c, place, factor: real_at(a, place),
    lambda builder, row, arrays, factor: row(arrays[0]),
)
"""Of an array `a` of real numbers."""


def _plain_ends(
    a: Any, b: Any, c: Any, first: Any, low: Any, middle: Any, high: Any, lows: Any, highs: Any
) -> None:
    for place in range(first, first + FAN):
        tokens, requests, used = real_at(a, place), real_at(b, place), real_at(c, place)
        held = used >= tokens + requests * middle
        put_real(lows, place, used if held else min(EMPTY, tokens + requests * low))
        put_real(highs, place, used if held else min(EMPTY, tokens + requests * high))


@intrinsic
def _wide_ends(
    typing: Any,
    a: Any,
    b: Any,
    c: Any,
    first: Any,
    low: Any,
    middle: Any,
    high: Any,
    lows: Any,
    highs: Any,
) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, means, into = arguments[3], arguments[4:7], arguments[7:]
        tokens, requests, used = (_row(builder, address, first, _REAL) for address in arguments[:3])
        below, middle, above = (
            builder.fadd(tokens, builder.fmul(requests, _splat(builder, mean))) for mean in means
        )
        held = builder.fcmp_ordered(">=", used, middle)
        empty = _splat(builder, ir.Constant(_REAL, EMPTY))
        for address, expected in zip(into, (below, above), strict=True):
            some = builder.select(builder.fcmp_ordered("<", expected, empty), expected, empty)
            start = builder.add(address, builder.mul(first, first.type(8)))
            place = builder.inttoptr(start, some.type.as_pointer())
            builder.store(builder.select(held, used, some), place, align=8)
        return context.get_dummy_value()

    addresses, means = (types.int64,) * 4, (types.float64,) * 3
    return types.void(*addresses, *means, types.int64, types.int64), code


put_ends: Any = _plain_ends if IN_PYTHON else _wide_ends
"""`put_ends(a, b, c, first, low, middle, high, lows, highs)`: as `board.ends_of`, of sixteen machines.

`a`, `b` and `c` are the board's rows of tokens, requests and KV tokens held; `low` to `high` are means.
"""
