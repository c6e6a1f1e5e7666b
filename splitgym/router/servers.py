"""The servers: connections, load, and a circuit breaker each."""

import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from splitgym.router.config import HealthConfig, ServerConfig
from splitgym.router.http.client import Origin
from splitgym.types import NS_PER_S


class Circuit(StrEnum):
    """State of a server's circuit breaker."""

    CLOSED = "closed"  # requests pass
    OPEN = "open"  # none pass until `open_s` has gone by
    HALF_OPEN = "half-open"  # one request may try


class Server:
    """One server as the router sees it.

    Args:
        index: its place in the view.
        config: name, url, limits.
        health: when the circuit opens.
        clock: now [ns].
        changed: called with (index, up) when it may take new work, or may not any more.

    Attributes:
        active: requests in progress here, both phases.
        draining: a role change keeps new work away.
        removed: taken out by the administrator.
        reports: what `/metrics` said last, by name.
        leases_ns: when caches that were computed here and that nobody pulled run out.
    """

    def __init__(
        self,
        index: int,
        config: ServerConfig,
        health: HealthConfig,
        clock: Callable[[], int],
        changed: Callable[[int, bool], None],
    ) -> None:
        self.index = index
        self.config = config
        self.url = config.url.rstrip("/")
        self.origin = Origin.of(self.url)
        self._health = health
        self._clock = clock
        self._changed = changed
        self.active = 0
        self.served = 0
        self.failed = 0
        self.draining = False
        self.removed = False
        self.reports: dict[str, float] = {}
        self.reported_ns = -1
        self.leases_ns: deque[int] = deque()
        self.circuit = Circuit.CLOSED
        self.last_error = ""
        self._in_a_row = 0
        self._open_s = health.open_s
        self._opened_ns = 0
        self._probing = False

    @property
    def name(self) -> str:
        """As configured."""
        return self.config.name

    @property
    def up(self) -> bool:
        """May it get new work?"""
        if self.draining or self.removed or self.active >= self.config.max_requests:
            return False
        return self.circuit is Circuit.CLOSED or (self.circuit is Circuit.HALF_OPEN and not self._probing)

    @property
    def healthy(self) -> bool:
        """Its circuit is not open."""
        return not self.removed and self.circuit is not Circuit.OPEN

    def tell(self) -> None:
        """Tell whether it may get new work."""
        self._changed(self.index, self.up)

    def enter(self) -> None:
        """A request begins here."""
        self.active += 1
        if self.circuit is Circuit.HALF_OPEN:
            self._probing = True
        self.tell()

    def leave(self) -> None:
        """It is over."""
        self.active -= 1
        self._probing = False
        self.tell()

    def succeeded(self) -> None:
        """A request or a check was answered as it should be."""
        self._in_a_row = 0
        if self.circuit is Circuit.HALF_OPEN:
            self.circuit = Circuit.CLOSED
            self._open_s = self._health.open_s
            self.tell()

    def broke(self, why: str) -> None:
        """A request or a check failed."""
        self.last_error = why
        self.failed += 1
        self._in_a_row += 1
        if self.circuit is Circuit.HALF_OPEN:
            self._open_s = min(self._health.open_max_s, self._open_s * 2)
            self._open()
        elif self.circuit is Circuit.CLOSED and self._in_a_row >= self._health.failures:
            self._open()

    def _open(self) -> None:
        self.circuit = Circuit.OPEN
        self._opened_ns = self._clock()
        self.tell()

    @property
    def due_for_probe(self) -> bool:
        """Open for long enough to be checked again."""
        waited = self._clock() - self._opened_ns
        return self.circuit is Circuit.OPEN and waited >= self._open_s * NS_PER_S

    def checked(self, healthy: bool, why: str = "") -> None:
        """The outcome of an active check."""
        if not healthy:
            if self.circuit is Circuit.OPEN:
                if self.due_for_probe:
                    self._open_s = min(self._health.open_max_s, self._open_s * 2)
                    self._open()
                self.last_error = why
            else:
                self.broke(why)
        elif self.due_for_probe:
            self.circuit = Circuit.HALF_OPEN
            self._probing = False
            self.tell()
        elif self.circuit is Circuit.CLOSED:
            self._in_a_row = 0

    def lease(self, seconds: float) -> None:
        """A cache was left here; vLLM frees it after a while."""
        self.leases_ns.append(self._clock() + round(seconds * NS_PER_S))

    @property
    def leases(self) -> int:
        """Caches here that nobody will pull."""
        now = self._clock()
        while self.leases_ns and self.leases_ns[0] <= now:
            self.leases_ns.popleft()
        return len(self.leases_ns)


def monotonic_clock() -> Callable[[], int]:
    """Nanoseconds since now, never going back."""
    start = time.monotonic_ns()
    return lambda: time.monotonic_ns() - start
