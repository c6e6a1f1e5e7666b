"""What schedulers share that copy the simulation they decide in."""

from typing import Any

from splitgym.errors import ConfigError


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
