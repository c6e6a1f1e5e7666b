"""What the two phases of a model cost on a machine: the first figures of the paper, from any profile.

Splitwise (ISCA 2024), section 3. `phases` and `machines` compute, `report` and `plots` show.
"""

from splitgym.evaluation.characterize.machines import (
    Ratio,
    alone,
    compare_phases,
    compare_requests,
    compare_specs,
)
from splitgym.evaluation.characterize.phases import (
    CONTEXT_TOKENS,
    Characterization,
    PowerOverTime,
    characterize,
    facts,
    simulate_power,
)
from splitgym.evaluation.characterize.plots import write_plots
from splitgym.evaluation.characterize.report import as_json, print_tables, write_files
from splitgym.profile import find

__all__ = [
    "CONTEXT_TOKENS",
    "Characterization",
    "PowerOverTime",
    "Ratio",
    "alone",
    "as_json",
    "characterize",
    "compare_phases",
    "compare_requests",
    "compare_specs",
    "facts",
    "find",
    "print_tables",
    "simulate_power",
    "write_files",
    "write_plots",
]
