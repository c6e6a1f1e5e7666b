"""The counters of all servers, and the view over them that schedulers see."""

from collections.abc import Callable

import numpy as np

from splitgym.cluster import Cluster
from splitgym.router.flights import Counters
from splitgym.types import Pool
from splitgym.view import ClusterView


class Board:
    """What holds of servers, whatever requests they have; see `splitgym.router.state`.

    Args:
        cluster: one machine a server, in the order of the servers.
        clock: now [ns]; anything that never goes back.
        confine: restrict each phase to its own and the mixed pool; None is what the cluster says.
    """

    def __init__(self, cluster: Cluster, clock: Callable[[], int], confine: bool | None) -> None:
        self.cluster = cluster
        self.view: ClusterView = cluster.view()
        self._clock = clock
        self._confine = cluster.config.confine if confine is None else confine
        self._rows = self.view.machine_row.tolist()
        self._machines = [Counters(home=Pool(home)) for home in cluster.home_pools.tolist()]
        self._dirty = set(range(len(self._machines)))
        self._regroup = True  # a server's pool, or whether it is up, may have changed
        self._rules = self.view.rules

    def now_ns(self) -> int:
        """The clock."""
        return self._clock()

    # ---- servers ------------------------------------------------------------------------------------------

    def set_confine(self, confine: bool) -> None:
        """Restrict each phase to its pools, or not any more."""
        self._confine = confine
        self._dirty.add(0)
        self._regroup = True

    def set_up(self, m: int, up: bool) -> None:
        """May server m get new work?"""
        if self._machines[m].up != up:
            self._machines[m].up = up
            self._dirty.add(m)

    def set_home(self, m: int, pool: Pool) -> None:
        """Server m changes its home pool."""
        self._machines[m].home = pool
        self._dirty.add(m)

    def home(self, m: int) -> Pool:
        """Home pool of server m."""
        return self._machines[m].home

    def load(self, m: int) -> tuple[int, int]:
        """(pending prompt tokens, requests decoding or inbound) of server m."""
        machine = self._machines[m]
        return machine.queued_tokens + machine.iteration_tokens, len(machine.decodes) + len(machine.inbound)

    def busy(self, m: int) -> bool:
        """Has server m work of either phase, or a cache on its way out?"""
        machine = self._machines[m]
        work = machine.queue or machine.prompts or machine.decodes or machine.inbound
        return bool(work) or machine.transfers > 0

    def set_capacity(self, m: int, kv_tokens: int) -> None:
        """Server m says how many KV tokens it holds."""
        self.view.kv_capacity_tokens[m] = max(1, kv_tokens)

    def reported(self, m: int, kv_share: float) -> None:
        """Server m says what share of its KV memory is in use: the counter goes on from there."""
        machine = self._machines[m]
        if 0.0 <= kv_share <= 1.0:
            machine.correction = round(kv_share * int(self.view.kv_capacity_tokens[m])) - machine.used
            self._dirty.add(m)

    def grown(self, cluster: Cluster) -> ClusterView:
        """A view of the same servers and more, not yet in use.

        Args:
            cluster: begins with the machines of the present one.
        """
        view, old = cluster.view(), self.refresh()
        m = len(old.machine_row)
        for name, array in old._asdict().items():
            if isinstance(array, np.ndarray) and name != "machine_row":
                target = getattr(view, name)
                target[: m if len(target) > m and len(array) == m else len(array)] = array
        return view

    def adopt(self, cluster: Cluster, view: ClusterView) -> None:
        """Go on with what `grown` made."""
        homes = cluster.home_pools.tolist()[len(self._machines) :]
        self._machines += [Counters(home=Pool(home), up=False) for home in homes]
        self.cluster, self.view, self._rules = cluster, view, view.rules
        self._rows = view.machine_row.tolist()
        self._dirty = set(range(len(self._machines)))
        self._regroup = True

    # ---- the view -----------------------------------------------------------------------------------------

    def refresh(self) -> ClusterView:
        """The view as of now."""
        self.view.clock[0] = self._clock()
        if self._dirty:
            for m in self._dirty:
                self._regroup |= self._machines[m].write(self.view, m)
            self._dirty.clear()
            if self._regroup:
                self._regroup = False
                self._allow()
        return self.view

    @property
    def can_route(self) -> bool:
        """Is any server up?"""
        return any(machine.up for machine in self._machines)

    def _allow(self) -> None:
        """As the simulator: confinement is lifted for a phase that it would leave without a server."""
        view = self.view
        view.prompt_allowed[:] = view.available
        view.token_allowed[:] = view.available
        if self._confine:
            for flags, other in ((view.prompt_allowed, Pool.TOKEN), (view.token_allowed, Pool.PROMPT)):
                own = view.available * (view.pool != other)
                if own.any():
                    np.copyto(flags, own)
