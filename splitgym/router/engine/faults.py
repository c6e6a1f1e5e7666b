"""What may go wrong with an engine, on purpose."""

import asyncio
import time

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT


@dataclass(frozen=True, config=STRICT)
class FaultOptions:
    """Faults of requests to /v1. Probabilities are drawn anew for every request."""

    refuse: bool = False
    """Close every connection that brings a request, without an answer."""
    error_probability: float = Field(default=0.0, ge=0, le=1)
    """Answer with vLLM's 500."""
    reset_probability: float = Field(default=0.0, ge=0, le=1)
    """Reset the connection: before the answer, or after some chunks of a stream."""
    reset_after_chunks: int = Field(default=8, ge=0)
    """A stream is reset after 0 to so many chunks."""
    malformed_probability: float = Field(default=0.0, ge=0, le=1)
    """Answer with JSON that breaks off; in a stream, one such event, and the end."""
    slow_body_s: float = Field(default=0.0, ge=0, le=3600)
    """Wait so long before every write."""


@dataclass(frozen=True)
class Fate:
    """What happens to one request."""

    error: bool = False
    malformed: bool = False
    reset_after: int | None = None  # chunks of a stream; any number resets what is not streamed


class Faults:
    """Faults in force.

    Args:
        seed: of what is drawn.
    """

    def __init__(self, seed: int):
        self.options = FaultOptions()
        self._rng = np.random.default_rng(seed)
        self._stalled_until_s = 0.0

    def stall(self, seconds: float) -> None:
        """From now on nothing is answered for so long; 0 ends it."""
        self._stalled_until_s = time.monotonic() + seconds

    @property
    def stalled_s(self) -> float:
        """How long nothing is answered yet."""
        return max(0.0, self._stalled_until_s - time.monotonic())

    @property
    def active(self) -> bool:
        """A write may have to wait."""
        return self.options.slow_body_s > 0 or self._stalled_until_s > 0

    async def wait(self) -> None:
        """Wait until a write may happen."""
        if self.options.slow_body_s:
            await asyncio.sleep(self.options.slow_body_s)
        while left_s := self.stalled_s:
            await asyncio.sleep(left_s)

    def draw(self) -> Fate:
        """The fate of the next request."""
        options = self.options
        error, malformed, reset = self._rng.random(3)
        after = int(self._rng.integers(0, options.reset_after_chunks, endpoint=True))
        return Fate(
            error=bool(error < options.error_probability),
            malformed=bool(malformed < options.malformed_probability),
            reset_after=after if reset < options.reset_probability else None,
        )
