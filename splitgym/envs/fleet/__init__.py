"""Many environments of one kind, stepped in one compiled call, in threads, into preallocated arrays."""

from splitgym.envs.fleet.fleet import Fleet, compilable

__all__ = ["Fleet", "compilable"]
