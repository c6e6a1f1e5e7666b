"""Many environments of one kind, stepped in one compiled call, in threads, into preallocated arrays."""

from splitgym.envs.fleet.fleet import Fleet
from splitgym.envs.fleet.office import compilable

__all__ = ["Fleet", "compilable"]
