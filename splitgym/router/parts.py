"""The parts of a running router, made from its configuration, and what all of them share."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.config import to_mapping
from splitgym.profile.tables import ProfileTables
from splitgym.router.config import RouterConfig, ServerConfig
from splitgym.router.decisions import Deciders, Decisions
from splitgym.router.estimate import PromptLength
from splitgym.router.gate import Gate
from splitgym.router.metrics import Metrics
from splitgym.router.records import DecisionLog, Record, Window
from splitgym.router.servers import Server, monotonic_clock
from splitgym.router.state import Flight, RouterState
from splitgym.router.upstream import Upstream
from splitgym.slo import is_good
from splitgym.types import NS_PER_S, to_ns

_SETTLE_S = 0.0005


class Parts:
    """Everything that a running router holds. Make it inside a running loop (`open`).

    Args:
        config: the router's.

    Raises:
        SplitgymError: a server's profile, the policy, the log or a tokenizer cannot be used.
    """

    upstream: Upstream

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.started_unix_s = time.time()
        self.clock = monotonic_clock()
        cluster = Cluster.resolve(config.cluster())
        deciders = Deciders.load(config.policy.routing, config.policy.sizing, config.policy.confine)
        self._warm(cluster, deciders)
        self.state = RouterState(cluster, self.clock, deciders.confine)
        self.servers = [self._server(i, server) for i, server in enumerate(config.servers)]
        for i, server in enumerate(config.servers):
            if server.kv_tokens is not None:
                self.state.set_capacity(i, server.kv_tokens)
        self.decisions = Decisions(config.policy, deciders, self.state)
        self.lengths = PromptLength(config.tokens)
        self.gate = Gate(config.limits, self.decisions, self.servers)
        self.log = DecisionLog(config.log)
        self.window = Window()
        self.metrics = Metrics(self)
        self.active = 0
        self._ended: list[Record] = []
        self._settling: asyncio.TimerHandle | None = None
        self.log.before_event = self.settle

    def _warm(self, cluster: Cluster, deciders: Deciders) -> None:
        """Go through a request once, so that none waits for the compiler."""
        state = RouterState(cluster, lambda: 0)
        last = cluster.num_machines - 1
        for p in {0, last}:
            flight = Flight(100, p, last)
            state.place(flight)
            state.tokens(flight, 1)
            state.place(waiting := Flight(100, last, last))  # joins a server that decodes
            state.dropped(waiting)
            state.finished(flight, 1)
        deciders.warm(state)
        heuristic = schedulers.routing(self.config.policy.heuristic)
        replace(deciders, routing=heuristic, sizing=schedulers.sizing("static")).warm(state)
        is_good(state.view.tables, 3.0, 1.5, 100, 10, 0, 1, 2)

    def scratch(self) -> RouterState:
        """A state of the same servers, to try a policy on."""
        return RouterState(self.state.cluster, lambda: 0)

    def _server(self, index: int, config: ServerConfig) -> Server:
        return Server(index, config, self.config.health, self.clock, self._changed)

    def _changed(self, index: int, up: bool) -> None:
        self.state.set_up(index, up)
        if up and hasattr(self, "gate"):
            self.gate.wake()

    @property
    def tables(self) -> ProfileTables:
        """Of the servers' profiles; row 0 is the reference."""
        return self.state.view.tables

    def open(self) -> None:
        """What needs a running loop."""
        self.upstream = Upstream(self.config.limits, self.config.admin.allowed_networks)
        self.log.begin(
            servers=self.logged_servers(),
            model=self.config.model,
            policy=self.decisions.deciders.name,
            bundle=self.decisions.deciders.sha256,
            heuristic=self.config.policy.heuristic,
            shadow=self.decisions.shadow,
            confine=self.decisions.deciders.confine,
            cluster=to_mapping(self.state.cluster.config),
        )

    def logged_servers(self) -> list[dict[str, Any]]:
        """What the decision log says of the servers; with the cluster, enough to simulate them."""
        return [
            {
                "name": s.name,
                "pool": s.config.pool,
                "machine": s.config.machine,
                "tensor_parallel": s.config.tensor_parallel,
                "kv_tokens": s.config.kv_tokens,
                "max_requests": s.config.max_requests,
            }
            for s in self.servers
        ]

    async def close(self) -> None:
        """Connections and the log."""
        await self.upstream.close()
        self.settle()
        self.log.close()

    def now_s(self) -> float:
        """Seconds since the router began."""
        return self.clock() / NS_PER_S

    def name_of(self, index: int) -> str:
        """A server's name, or its number where there is none."""
        return self.servers[index].name if 0 <= index < len(self.servers) else str(index)

    def finish(self, record: Record) -> None:
        """A request is over. It is judged, counted and logged a little later, with others: that costs less,
        and no request waits for it.
        """
        self._ended.append(record)
        if len(self._ended) == 1:
            self._settling = asyncio.get_running_loop().call_later(_SETTLE_S, self.settle)

    def settle(self) -> None:
        """Judge, count and log what has ended so far; whoever reads accounts asks for it first."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        ended, self._ended = self._ended, []
        for record in ended:
            self._judge(record)
            self.metrics.count(record)
            self.log.write(record.as_dict())

    def _judge(self, record: Record) -> None:
        """Was it good? Only a complete stream shows its first token."""
        if record.outcome != "ok" or record.first_byte_s is None:
            return
        prompt = record.prompt_tokens or record.estimated_prompt_tokens
        slo = self.config.slo
        record.good = bool(
            is_good(
                self.tables,
                slo.ttft_slowdown,
                slo.tbt_slowdown,
                prompt,
                record.output_tokens,
                0,
                to_ns(record.first_byte_s),
                to_ns(record.end_s),
            )
        )
        self.window.add(self.now_s(), record.good, record.first_byte_s)

    def add_server(self, config: ServerConfig) -> Server:
        """Add a server while requests are in flight.

        Raises:
            SplitgymError: its profile cannot be used, or the policy knows fewer machines.
        """
        configs = (*(server.config for server in self.servers), config)
        # A confined cluster may for a while hold one pool only; what is being added is checked alone.
        cluster = Cluster.resolve(self.config.cluster(configs))
        self.decisions.grow(cluster)
        server = self._server(len(self.servers), replace(config))
        self.servers.append(server)
        if config.kv_tokens is not None:
            self.state.set_capacity(server.index, config.kv_tokens)
        server.tell()
        return server

    async def drained(self, within_s: float) -> bool:
        """Wait until no request is in progress; False where some are left."""
        end = time.monotonic() + within_s
        while self.active and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return self.active == 0
