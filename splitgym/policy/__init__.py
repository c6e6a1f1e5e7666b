"""Policy bundles: a folder with a manifest and weights that decides without torch and without pickle.

>>> from splitgym import policy
>>> policy.bundled_names()  # doctest: +SKIP
('index-residual',)

See docs/policy-bundle.md for the format.
"""

from splitgym.policy.bundle import load
from splitgym.policy.find import bundled_names, complete, contender, is_bundle, locate
from splitgym.policy.heuristics import export_heuristic, export_schedulers
from splitgym.policy.manifest import FORMAT, Action, Manifest, Partner, SchedulerSpec
from splitgym.policy.policies import NetworkPolicy, Policy, SchedulerPolicy
from splitgym.policy.save import write_bundle

__all__ = [
    "FORMAT",
    "Action",
    "Manifest",
    "NetworkPolicy",
    "Partner",
    "Policy",
    "SchedulerPolicy",
    "SchedulerSpec",
    "bundled_names",
    "complete",
    "contender",
    "export_heuristic",
    "export_schedulers",
    "is_bundle",
    "load",
    "locate",
    "write_bundle",
]
