"""Traces: load, validate, transform, generate."""

from splitgym.trace.trace import Trace
from splitgym.trace.transforms import (
    PARTS,
    at_rate,
    mix,
    part,
    poisson,
    shift_between,
    speed_up,
    superpose,
    window,
)

__all__ = [
    "PARTS",
    "Trace",
    "at_rate",
    "mix",
    "part",
    "poisson",
    "shift_between",
    "speed_up",
    "superpose",
    "window",
]
