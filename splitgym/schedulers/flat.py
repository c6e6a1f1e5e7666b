"""Flat weight vectors and their named parts: what a search sees as one, and a scheduler as several."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

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


Weights = tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
"""A flat vector as an option of a scheduler."""


class Trained:
    """What schedulers share whose options are a flat vector and a label."""

    weights: Weights
    label: str

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    @cached_property
    def params(self) -> NDArray[np.float64]:
        """The flat vector as the kernel reads it."""
        return np.array(self.weights, np.float64)
