"""Numbers that threads share, by address: each call is one instruction that no other thread comes between.

Where Numba is switched off there is one thread, and plain reading and writing is enough.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from splitgym.sim.compiled.reach import IN_PYTHON, reader, writer


def _changer(how: str) -> Callable[..., Any]:
    """`f(address, index, value)`: "add" to the int64 at a place, or put ("xchg"); returns what was there."""
    if IN_PYTHON:
        read, write = reader(np.int64), writer(np.int64)

        def change(address: int, index: int, value: int) -> int:
            before = int(read(address, index))
            write(address, index, before + value if how == "add" else value)
            return before

        return change

    @intrinsic
    def changed(typing: Any, address: Any, index: Any, value: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, place, new = arguments
            pointer = context.get_value_type(types.CPointer(types.int64))
            at = builder.inttoptr(builder.add(base, builder.mul(place, place.type(8))), pointer)
            return builder.atomic_rmw(how, at, new, "seq_cst")

        return types.int64(types.int64, types.int64, types.int64), code

    return changed


def _loader() -> Callable[..., Any]:
    """`f(address, index)`: the int64 at a place, and all that was written before it was."""
    if IN_PYTHON:
        return reader(np.int64)

    @intrinsic
    def load(typing: Any, address: Any, index: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, place = arguments
            pointer = context.get_value_type(types.CPointer(types.int64))
            at = builder.inttoptr(builder.add(base, builder.mul(place, place.type(8))), pointer)
            return builder.load_atomic(at, "seq_cst", 8)

        return types.int64(types.int64, types.int64), code

    return load


add_shared, swap_shared, shared_at = _changer("add"), _changer("xchg"), _loader()
