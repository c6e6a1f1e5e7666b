"""Evaluation: run policies on the same windows, compare, report.

>>> from splitgym.evaluation import evaluate
>>> from splitgym.config import ClusterConfig
>>> results = evaluate(["splitwise", "index"], ClusterConfig(), ["poisson:azure-code@19"], seeds=range(3))
"""

from splitgym.evaluation.clairvoyant import CLAIRVOYANT, Clairvoyant, clairvoyant
from splitgym.evaluation.compare import (
    Comparison,
    Interval,
    bootstrap_mean,
    brackets,
    compare,
    interquartile_mean,
    paired_difference,
)
from splitgym.evaluation.contenders import (
    VLLM,
    Contender,
    FunctionScheduler,
    PolicyLike,
    contender,
    without_split,
)
from splitgym.evaluation.lookahead import LOOKAHEAD, LookAhead, look_ahead
from splitgym.evaluation.max_rate import MaxRate, bisect_rate, max_request_rate
from splitgym.evaluation.page import write_page
from splitgym.evaluation.plots import write_plots
from splitgym.evaluation.report import as_json, print_tables, summary, table, write_files
from splitgym.evaluation.run import Results, Run, choose, evaluate
from splitgym.evaluation.workloads import Workload, parse, parse_at_rates

__all__ = [
    "CLAIRVOYANT",
    "LOOKAHEAD",
    "VLLM",
    "Clairvoyant",
    "Comparison",
    "Contender",
    "FunctionScheduler",
    "Interval",
    "LookAhead",
    "MaxRate",
    "PolicyLike",
    "Results",
    "Run",
    "Workload",
    "as_json",
    "bisect_rate",
    "bootstrap_mean",
    "brackets",
    "choose",
    "clairvoyant",
    "compare",
    "contender",
    "evaluate",
    "interquartile_mean",
    "look_ahead",
    "max_request_rate",
    "paired_difference",
    "parse",
    "parse_at_rates",
    "print_tables",
    "summary",
    "table",
    "without_split",
    "write_files",
    "write_page",
    "write_plots",
]
