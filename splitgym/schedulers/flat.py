"""Flat weight vectors and their named parts: what a search sees as one, and a scheduler as several."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Layout = dict[str, tuple[int, ...]]
"""Names and shapes of the parts, in their order (row-major)."""


def length_of(layout: Layout) -> int:
    """Length of the flat vector."""
    return sum(math.prod(shape) for shape in layout.values())


def unpack_parts(weights: NDArray[np.float64], layout: Layout) -> dict[str, NDArray[np.float64]]:
    """The named parts of a flat vector, as views into it."""
    parts, at = {}, 0
    for name, shape in layout.items():
        count = math.prod(shape)
        parts[name] = weights[at : at + count].reshape(shape)
        at += count
    return parts


def pack_parts(parts: Mapping[str, NDArray[np.float64]], layout: Layout, what: str) -> NDArray[np.float64]:
    """The flat vector of named parts: undoes `unpack_parts`.

    Args:
        parts: by name.
        layout: theirs.
        what: they are of, for the error.

    Raises:
        ValueError: a part is missing, unknown or of another shape.
    """
    found = {name: np.shape(part) for name, part in parts.items()}
    if found != layout:
        raise ValueError(f"parts of {what} are {layout}, found {found}")
    return np.concatenate([np.ravel(np.asarray(parts[name], np.float64)) for name in layout])
