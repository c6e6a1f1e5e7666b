"""Provisioning: which machines, how many, in which pools.

>>> from splitgym.evaluation import parse
>>> from splitgym.provisioning import Problem, Runs, most_rate, parse_budget, parse_designs, processes
>>> problem = Problem("bloom-176b", parse("poisson:azure-conv@1", duration_s=60))
>>> with processes() as map:
...     found = most_rate(
...         problem, parse_designs("paper"), parse_budget("count=8", problem.model), Runs(map)
...     )  # doctest: +SKIP
"""

from splitgym.provisioning.answer import Answer, Request
from splitgym.provisioning.designs import (
    PAPER_COUNTS,
    PAPER_DESIGNS,
    Budget,
    Design,
    PoolOf,
    parse_budget,
    parse_design,
    parse_designs,
)
from splitgym.provisioning.plan import Curve, Found, Frontier, Problem, curves, frontiers, least, most_rate
from splitgym.provisioning.report import as_json, table, write_files
from splitgym.provisioning.runs import Percentiles, Runs, Task, failures, slowdowns, sources_of
from splitgym.scale import processes

__all__ = [
    "PAPER_COUNTS",
    "PAPER_DESIGNS",
    "Answer",
    "Budget",
    "Curve",
    "Design",
    "Found",
    "Frontier",
    "Percentiles",
    "PoolOf",
    "Problem",
    "Request",
    "Runs",
    "Task",
    "as_json",
    "curves",
    "failures",
    "frontiers",
    "least",
    "most_rate",
    "parse_budget",
    "parse_design",
    "parse_designs",
    "processes",
    "slowdowns",
    "sources_of",
    "table",
    "write_files",
]
