"""Agreement with SplitwiseSim, the simulator published with the Splitwise paper: `splitgym validate`.

>>> from splitgym.evaluation import reference
>>> tables = reference.read_tables(Path("perf_model.csv"))
>>> for case in reference.read_folder(Path("results")):
...     print(reference.line(reference.compare(case, tables)))
"""

from splitgym.evaluation.reference.cases import Case, check_setups, find_cases, read_folder
from splitgym.evaluation.reference.compare import AGREES, NAMED, UNNAMED, Comparison, Ours, compare, run
from splitgym.evaluation.reference.oddities import CAUSES
from splitgym.evaluation.reference.report import as_json, legend, line, markdown, summary, write_markdown
from splitgym.evaluation.reference.setup import Setup, Tables, find_tables, parse_setup, read_tables

__all__ = [
    "AGREES",
    "CAUSES",
    "NAMED",
    "UNNAMED",
    "Case",
    "Comparison",
    "Ours",
    "Setup",
    "Tables",
    "as_json",
    "check_setups",
    "compare",
    "find_cases",
    "find_tables",
    "legend",
    "line",
    "markdown",
    "parse_setup",
    "read_folder",
    "read_tables",
    "run",
    "summary",
    "write_markdown",
]
