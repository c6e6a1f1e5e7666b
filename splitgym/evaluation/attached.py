"""What schedulers share that copy the simulation they decide in."""

from typing import TYPE_CHECKING, Any

from splitgym.errors import ConfigError

if TYPE_CHECKING:
    from splitgym.sim.futures import Verdict

LATE_WEIGHT = 0.05
"""What lateness beyond the p99 SLO costs, in good requests: as the tail weighs in evolution's fitness."""


class Attached:
    """A scheduler that needs the compiled engine itself; `splitgym.evaluation` attaches it."""

    name: str
    _engine: Any = None

    def attach(self, engine: Any) -> None:
        """Say which engine is copied.

        Raises:
            ConfigError: not the compiled one.
        """
        from splitgym.sim.compiled_engine import CompiledEngine

        if not isinstance(engine, CompiledEngine):
            raise ConfigError(f"policy {self.name} copies the compiled engine: use engine compiled")
        self._engine = engine


def worth(verdict: "Verdict") -> float:
    """What a copy of the simulation came to: good requests less what lateness costs."""
    return verdict.good - LATE_WEIGHT * verdict.late
