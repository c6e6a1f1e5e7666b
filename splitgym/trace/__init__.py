"""Traces: load, save, transform, generate."""

from splitgym.trace.blends import mix, shift_between
from splitgym.trace.loaders import blocks, load_file, save
from splitgym.trace.sources import fetch, load, names
from splitgym.trace.synth import generate
from splitgym.trace.trace import Trace
from splitgym.trace.transforms import (
    PARTS,
    at_rate,
    part,
    poisson,
    predict_outputs,
    speed_up,
    stretch_outputs,
    superpose,
    window,
)

__all__ = [
    "PARTS",
    "Trace",
    "at_rate",
    "blocks",
    "fetch",
    "generate",
    "load",
    "load_file",
    "mix",
    "names",
    "part",
    "poisson",
    "predict_outputs",
    "save",
    "shift_between",
    "speed_up",
    "stretch_outputs",
    "superpose",
    "window",
]
