"""How compiled code reaches records and arrays: by address, each in one instruction.

The addresses are fields of a simulation's record. Nothing here checks a bound. Where Numba is switched off
(`NUMBA_DISABLE_JIT`), the same functions do it in plain Python.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from splitgym.compile_cache import numba

IN_PYTHON = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]
SHORT = np.int64 if IN_PYTHON else np.int32
"""Small numbers. Numba adds and shifts them as 8 bytes, plain Python does not."""


def compiled(function: Any) -> Any:
    """Compile by Numba, without reference counts: those of arrays, at every call, would take most
    of the time. So such a function makes no array and returns none.
    """
    return numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)  # type: ignore[call-overload]


def inlined(function: Any) -> Any:
    """As `compiled`, for what is called from one or two places and often: a call costs some nanoseconds."""
    return numba.njit(  # type: ignore[call-overload]
        cache=True, nogil=True, error_model="numpy", _nrt=False, forceinline=True
    )(function)


with_schedulers = numba.njit(cache=True, nogil=True, error_model="numpy")
"""For the functions that lead to a scheduler's kernel, which makes arrays. (Numba hands the want of reference
counts down to what it compiles on the way.)"""


inlined_with_schedulers = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=True)


def plain(dtype: np.dtype[Any], address: int, shape: tuple[int, ...]) -> Any:
    """An array over memory that somebody else keeps."""
    size = dtype.itemsize * int(np.prod(shape))
    buffer: Any = (ctypes.c_char * size).from_address(int(address))
    return np.frombuffer(buffer, dtype).reshape(shape)


def _element(context: Any, builder: Any, address: Any, index: Any, kind: types.Type, size: int) -> Any:
    """LLVM: the address of element `index` of an array."""
    offset = builder.mul(index, index.type(size))
    pointer = context.get_value_type(types.CPointer(kind))
    return builder.inttoptr(builder.add(address, offset), pointer)


def record_reader(dtype: np.dtype[Any]) -> Callable[..., Any]:
    """`f(address, index)`: the record at a place of an array of records, to be read and written."""
    if IN_PYTHON:
        kind = np.dtype((np.record, dtype))
        return lambda address, index: plain(kind, address + index * dtype.itemsize, (1,))[0]
    record = numba.from_dtype(dtype)

    @intrinsic
    def at(typing: Any, address: Any, index: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, place = arguments
            offset = builder.mul(place, place.type(dtype.itemsize))
            return builder.inttoptr(builder.add(base, offset), context.get_value_type(record))

        return record(types.int64, types.int64), code

    return at


def reader(dtype: Any) -> Callable[..., Any]:
    """`f(address, index)`: the number at a place of an array."""
    kind = np.dtype(dtype)
    if IN_PYTHON:
        return lambda address, index: plain(kind, address + index * kind.itemsize, (1,))[0]
    number = numba.from_dtype(kind)

    @intrinsic
    def read(typing: Any, address: Any, index: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(_element(context, builder, arguments[0], arguments[1], number, kind.itemsize))

        return number(types.int64, types.int64), code

    return read


def writer(dtype: Any) -> Callable[..., Any]:
    """`f(address, index, value)`: put a number at a place of an array."""
    kind = np.dtype(dtype)
    if IN_PYTHON:

        def put(address: int, index: int, value: Any) -> None:
            plain(kind, address + index * kind.itemsize, (1,))[0] = value

        return put
    number = numba.from_dtype(kind)

    @intrinsic
    def write(typing: Any, address: Any, index: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, place, new = arguments
            builder.store(new, _element(context, builder, base, place, number, kind.itemsize))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, number), code

    return write


def view_maker(dtype: Any, ndim: int) -> Callable[..., Any]:
    """`f(address, *shape)`: an array over memory that somebody else keeps."""
    kind = np.dtype(dtype)
    if IN_PYTHON:
        return lambda address, *shape: plain(kind, address, shape)
    array = types.Array(numba.from_dtype(kind), ndim, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, *shape = arguments
        strides = [address.type(kind.itemsize)]
        for size in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], size))
        made = make_array(array)(context, builder)
        data = builder.inttoptr(address, made.data.type)
        populate_array(made, data, shape, strides, address.type(kind.itemsize), None)
        return made._getvalue()

    if ndim == 1:

        @intrinsic
        def line(typing: Any, address: Any, size: Any) -> Any:
            return array(types.int64, types.int64), generate

        return line

    @intrinsic
    def matrix(typing: Any, address: Any, rows: Any, columns: Any) -> Any:
        return array(types.int64, types.int64, types.int64), generate

    return matrix


def blanker(start: int, stop: int, size: int) -> Callable[..., Any]:
    """`f(address, index)`: zeros from byte `start` to `stop` of the record at a place, `size` bytes each."""
    if IN_PYTHON:

        def blank(address: int, index: int) -> None:
            ctypes.memset(int(address + index * size + start), 0, stop - start)

        return blank

    @intrinsic
    def fill(typing: Any, address: Any, index: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, place = arguments
            offset = builder.add(builder.mul(place, place.type(size)), place.type(start))
            target = builder.inttoptr(builder.add(base, offset), cgutils.voidptr_t)
            cgutils.memset(builder, target, place.type(stop - start), 0)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return fill


def copier(size: int) -> Callable[..., Any]:
    """`f(target, source)`: copy `size` bytes between addresses."""
    if IN_PYTHON:
        return lambda target, source: ctypes.memmove(int(target), int(source), size)

    @intrinsic
    def copy(typing: Any, target: Any, source: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, from_ = (builder.inttoptr(address, cgutils.voidptr_t) for address in arguments)
            cgutils.raw_memcpy(builder, to, from_, arguments[0].type(size), 1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return copy


def fetcher(lines: int) -> Callable[..., Any]:
    """`f(address)`: let the processor fetch so many cache lines from there on, and go on meanwhile."""
    if IN_PYTHON:
        return lambda address: None

    @intrinsic
    def fetch(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
            prefetch = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
            for line in range(lines):
                place = builder.add(arguments[0], arguments[0].type(64 * line))
                # To be read, to be kept, data.
                options = [number(0), number(3), number(1)]
                builder.call(prefetch, [builder.inttoptr(place, cgutils.voidptr_t), *options])
            return context.get_dummy_value()

        return types.void(types.int64), code

    return fetch


long_at, put_long = reader(np.int64), writer(np.int64)
short_at, put_short = reader(SHORT), writer(SHORT)
real_at, put_real = reader(np.float64), writer(np.float64)
flag_at, put_flag = reader(np.uint8), writer(np.uint8)
longs, matrix = view_maker(np.int64, 1), view_maker(np.int64, 2)
reals, flags = view_maker(np.float64, 1), view_maker(np.uint8, 1)
