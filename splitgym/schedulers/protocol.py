"""What a scheduler is. Two small protocols; anything with these methods will do."""

from typing import Protocol, runtime_checkable

from splitgym.types import RequestInfo
from splitgym.view import ClusterView


@runtime_checkable
class RoutingScheduler(Protocol):
    """Chooses the prompt machine and the token machine of each request."""

    @property
    def name(self) -> str:
        """What tables and reports call it; a plain attribute will do."""

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run. Called before the first request; `view` shows the idle cluster."""

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """(prompt machine, token machine), each allowed by the view's masks; equal means no split."""


@runtime_checkable
class SizingScheduler(Protocol):
    """Moves machines between the pools, once a control interval."""

    @property
    def name(self) -> str:
        """What tables and reports call it; a plain attribute will do."""

    def reset(self, view: ClusterView, seed: int) -> None:
        """Forget the last run."""

    def resize(self, view: ClusterView) -> int:
        """Machines to move: n > 0 from the token to the prompt pool, n < 0 the other way, 0 none.

        The engine moves the least loaded machines of the pool, the lowest index on ties, and never leaves
        fewer than the cluster's `min_pool_machines` at home in a pool.
        """
