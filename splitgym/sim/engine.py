"""What an engine offers: all that is known about it above `sim/`."""

from typing import Protocol

from splitgym.cluster import Cluster
from splitgym.sim.outcomes import Outcomes
from splitgym.trace import Trace
from splitgym.types import Decision
from splitgym.view import ClusterView


class Engine(Protocol):
    """A simulator of one cluster.

    Made with a `Cluster` and two schedulers. Where a scheduler is None, the engine stops and asks: for
    `routing`, at every arrival (and when a failure makes a request start again); for `sizing`, at every
    control tick. With both given, one call of `run_until_decision` runs to the end.
    """

    cluster: Cluster
    view: ClusterView

    def reset(self, trace: Trace, seed: int = 0) -> None:
        """Start a run over `trace` from an idle cluster.

        Raises:
            TraceError: a request that can never fit a machine's memory; names the row.
        """

    def run_until_decision(self) -> Decision | None:
        """Advance to the next decision; None when every request has completed. `view` is true as of then."""

    def apply(self, action: tuple[int, int] | int) -> None:
        """Answer the pending decision: (prompt machine, token machine), or machines to move.

        Raises:
            ActionError: not possible now (masked), or no decision is pending.
        """

    def outcomes(self) -> Outcomes:
        """What has happened so far. Arrays grow as the run goes on; nothing is copied."""
