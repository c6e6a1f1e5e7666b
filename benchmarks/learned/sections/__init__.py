"""The sections of the benchmark. A new one: a file here with `SECTIONS`, named in `FILES`."""

from collections.abc import Callable
from importlib import import_module

from benchmarks.learned.measure import Bench
from benchmarks.learned.page import Section

FILES = ("routing", "max_rate", "tail", "sizing", "sizing_windows")
"""Modules of this folder, in the order of the page."""


def sections() -> dict[str, Callable[[Bench], Section]]:
    """All sections by name: each makes its runs and returns its part of the page."""
    found: dict[str, Callable[[Bench], Section]] = {}
    for name in FILES:
        found |= import_module(f"{__name__}.{name}").SECTIONS
    return found
