"""The state of a cluster that the rules change, and what they ask of the engine that moves time."""

from abc import ABC, abstractmethod

from splitgym.cluster import Cluster
from splitgym.sim.accounts import Accounts
from splitgym.sim.job import Job
from splitgym.sim.machine import Machine
from splitgym.sim.network import Network, Transfer
from splitgym.sim.visibility import Visibility
from splitgym.trace import Trace
from splitgym.types import Pool
from splitgym.view import ClusterView


class ClusterState(ABC):
    """State of a cluster for one run, made by `_set_up`, and what its rules ask of an engine."""

    cluster: Cluster
    view: ClusterView

    def _set_up(self, trace: Trace) -> None:
        config = self.cluster.config
        self.view = self.cluster.view()
        self.machines = [self._make(m, int(c)) for m, c in enumerate(self.cluster.kv_capacity_tokens)]
        self.home = [Pool(p) for p in self.cluster.home_pools]
        self.network = Network(self.cluster.link_bytes_per_s.tolist(), config.transfer.shared)
        self.accounts = self._open_accounts(trace)
        self.visibility = Visibility(
            self.view,
            self.machines,
            self.home,
            self.network,
            config.confine,
            config.oracle,
            self.cluster.machine_row,
        )
        self._reserve_all = config.kv_reserve == "at_transfer"

    def _open_accounts(self, trace: Trace) -> Accounts:
        return Accounts(self.cluster, trace, self.view)

    def _make(self, index: int, capacity: int) -> Machine:
        return Machine(index, capacity, self.cluster.config.batching)

    # ---- what the rules ask of an engine ------------------------------------------------------------------

    @property
    @abstractmethod
    def now_ns(self) -> int:
        """Simulated time."""

    @abstractmethod
    def _wake(self, machine: Machine) -> None:
        """Let an idle machine look for work, before any other event of this time."""

    @abstractmethod
    def _asleep(self, machine: Machine) -> bool:
        """The machine has looked for work, found none, and nobody has woken it since."""

    @abstractmethod
    def _cut_short(self, machine: Machine) -> None:
        """The iteration in progress ends without a result."""

    @abstractmethod
    def _route_again(self, job: Job) -> None:
        """Ask anew where this request goes (a `REROUTE` event at this time)."""

    @abstractmethod
    def _wait_out_switch(self, machine: Machine) -> None:
        """The switching delay of a drained machine begins."""

    @abstractmethod
    def _launch(self, transfer: Transfer) -> None:
        """A transfer starts; call `_shipped` when its cache has arrived."""

    @abstractmethod
    def _rates_changed(self, transfers: list[Transfer]) -> None:
        """These transfers end at another time than was foreseen."""

    @abstractmethod
    def _prompt_over(self, transfer: Transfer) -> None:
        """The prompt whose cache is shipped layer by layer has ended."""

    @abstractmethod
    def _abort(self, transfer: Transfer) -> None:
        """The transfer will not arrive."""
