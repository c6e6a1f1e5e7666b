"""A scheduler that believes in a wrong profile: how much does an error of measurement cost?"""

from typing import Any

import numpy as np

from splitgym.profile import ProfileTables
from splitgym.types import RequestInfo
from splitgym.view import ClusterView


class Misjudging:
    """Lets a scheduler decide on a view whose times are off. For studies only.

    The profiles of the cluster's machines, and the waits that a router works out with them, are off by the
    two factors; the reference machine, by which SLOs are defined, is not. Iterations in progress end when
    they end.

    Args:
        base: a routing scheduler.
        prompt_factor: believed over true time of a prompt.
        token_factor: of a token iteration.
    """

    def __init__(self, base: Any, prompt_factor: float = 1.0, token_factor: float = 1.0) -> None:
        self.base = base
        self.prompt_factor, self.token_factor = prompt_factor, token_factor
        self.name = f"{base.name}, prompts x{prompt_factor:g}, tokens x{token_factor:g}"
        self._tables: ProfileTables | None = None

    def reset(self, view: ClusterView, seed: int) -> None:
        """See `RoutingScheduler`."""
        self._tables = self._believed(view.tables)
        self.base.reset(self._shown(view), seed)

    def route(self, view: ClusterView, request: RequestInfo) -> tuple[int, int]:
        """See `RoutingScheduler`."""
        prompt, token = self.base.route(self._shown(view), request)
        return int(prompt), int(token)

    def _believed(self, true: ProfileTables) -> ProfileTables:
        def scaled(array: Any, factor: float) -> Any:
            made = array.copy()
            made[1:] = np.rint(array[1:] * factor)  # row 0 is the reference
            return made

        return true._replace(
            prompt_ns=scaled(true.prompt_ns, self.prompt_factor),
            token_base=scaled(true.token_base, self.token_factor),
            token_slope=scaled(true.token_slope, self.token_factor),
        )

    def _shown(self, view: ClusterView) -> ClusterView:
        queue = np.rint(view.prompt_queue_ns * self.prompt_factor).astype(np.int64)
        assert self._tables is not None
        return view._replace(tables=self._tables, prompt_queue_ns=queue)
