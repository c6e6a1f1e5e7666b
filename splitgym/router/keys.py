"""Where API keys come from: never from the YAML itself."""

import os
from pathlib import Path

from pydantic.dataclasses import dataclass

from splitgym.config import STRICT
from splitgym.errors import ConfigError


@dataclass(frozen=True, config=STRICT)
class KeysConfig:
    """API keys, never in the YAML itself. Without any, requests need none."""

    env: str | None = None
    """Environment variable with keys, separated by commas."""
    file: str | None = None
    """File with one key a line."""

    def read(self) -> tuple[str, ...]:
        """The keys.

        Raises:
            ConfigError: a variable or file is named, but holds no key.
        """
        found: list[str] = []
        if self.env is not None:
            found += os.environ.get(self.env, "").split(",")
            if not any(key.strip() for key in found):
                raise ConfigError(f"environment variable {self.env} should hold API keys, but is empty")
        if self.file is not None:
            try:
                lines = Path(self.file).read_text().splitlines()
            except OSError as error:
                raise ConfigError(f"key file {self.file} cannot be read ({error.strerror})") from None
            if not any(line.strip() for line in lines):
                raise ConfigError(f"key file {self.file} holds no key")
            found += lines
        return tuple(key.strip() for key in found if key.strip())
