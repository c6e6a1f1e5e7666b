"""What another router needs to decide by our policy: servers that come and go, requests that it follows.

Of the other router nothing is known here: it says which servers it has, what is asked, what came back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from splitgym.cluster import Cluster
from splitgym.config import STRICT
from splitgym.router.config import AdminConfig, PolicyConfig, RouterConfig, ServerConfig, TokensConfig
from splitgym.router.decisions import Choice, Deciders, Decisions
from splitgym.router.estimate import PromptLength
from splitgym.router.protocol import wanted_tokens
from splitgym.router.servers import monotonic_clock
from splitgym.router.state import Flight, RouterState
from splitgym.types import Pool

_ANYWHERE = AdminConfig(allowed_networks=("0.0.0.0/0", "::/0"))
"""Where servers may lie is the other router's matter."""


@checked(frozen=True, config=STRICT)
class AdapterConfig:
    """Who decides, and what hardware the servers run on."""

    model: str = "llama2-70b"
    """The profile's model, which predicts times."""
    machine: str = "h100-80gb"
    """Machine type of the servers."""
    tensor_parallel: int = Field(default=8, ge=1)
    machines: dict[str, str] = Field(default_factory=dict)
    """Machine type of some servers, by URL."""
    policy: PolicyConfig = PolicyConfig(routing="index", heuristic="splitwise")
    tokens: TokensConfig = TokensConfig()


@dataclass(eq=False)
class Asked:
    """One request as the other router holds it."""

    prompt_tokens: int
    characters: int
    max_tokens: int | None
    flight: Flight | None = None
    tries: int = 0
    choice: Choice | None = None
    pair: tuple[str, str] | None = None
    """URLs of the prompt and the token server."""
    events: int = field(default=0)


class Placement:
    """Decides by a policy, with the guardrails of `splitgym route`.

    Args:
        config: who decides.

    Raises:
        SplitgymError: no such model, machine, scheduler or bundle, or one that is refused.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self.lengths = PromptLength(config.tokens)
        self._deciders = Deciders.load(config.policy.routing, "static", config.policy.confine)
        self._clock = monotonic_clock()
        self._servers: list[ServerConfig] = []
        self._index: dict[str, int] = {}
        self._up: set[str] = set()
        # Any two servers: whatever is wrong shows now, and no request waits for the compiler.
        some = [self._server(f"http://127.0.0.1:{port}", Pool.MIXED) for port in (1, 2)]
        self._deciders.warm(RouterState(self._cluster(some), lambda: 0))
        self.state: RouterState
        self.decisions: Decisions

    def _server(self, url: str, pool: Pool) -> ServerConfig:
        """A server by its URL."""
        return ServerConfig(
            name=f"s{len(self._servers)}",
            url=url,
            pool=pool.name.lower(),  # type: ignore[arg-type]
            machine=self.config.machines.get(url, self.config.machine),
            tensor_parallel=self.config.tensor_parallel,
        )

    def _cluster(self, servers: list[ServerConfig]) -> Cluster:
        named = tuple(replace(server, name=f"s{i}") for i, server in enumerate(servers))
        return Cluster.resolve(RouterConfig(named, model=self.config.model, admin=_ANYWHERE).cluster())

    # ---- servers ------------------------------------------------------------------------------------------

    def known(self, pools: Mapping[str, Pool]) -> None:
        """These are the servers now, with their pools; others are not chosen any more.

        Raises:
            SplitgymError: the policy knows fewer machines.
        """
        new = [url for url in pools if url not in self._index]
        if new:
            self._add(new, pools)
        for url in self._up - pools.keys():
            self.state.set_up(self._index[url], False)
        for url, pool in pools.items():
            m = self._index[url]
            self.state.set_up(m, True)
            if self.state.home(m) is not pool:
                self.state.set_home(m, pool)
        self._up = set(pools)

    def _add(self, urls: list[str], pools: Mapping[str, Pool]) -> None:
        servers = [*self._servers, *(self._server(url, pools[url]) for url in urls)]
        cluster = self._cluster(servers)
        if not self._servers:
            self.state = RouterState(cluster, self._clock, self._deciders.confine)
            self.decisions = Decisions(self.config.policy, self._deciders, self.state)
        else:
            self.decisions.grow(cluster)
        self._servers = servers
        self._index = {server.url: m for m, server in enumerate(servers)}

    def reported(self, url: str, kv_share: float) -> None:
        """A server says what share of its KV memory is in use; 0 is what one that says nothing gives."""
        if url in self._up and kv_share > 0:
            self.state.reported(self._index[url], kv_share)

    # ---- requests -----------------------------------------------------------------------------------------

    def ask(self, body: dict[str, Any]) -> Asked:
        """A request came."""
        tokens, characters = self.lengths.measure(body)
        return Asked(tokens, characters, wanted_tokens(body))

    def place(self, asked: Asked, among: Iterable[str], together: bool) -> tuple[str, str] | None:
        """URLs of the prompt and the token server; None where the policy and the heuristic name no such one.

        Args:
            asked: placed before and failed, it is placed anew.
            among: servers that may be chosen.
            together: one server does both phases: the one that the policy would give the prompt.
        """
        if asked.flight is not None:
            self.state.dropped(asked.flight)
        elif asked.tries == 0:
            self.state.arrived(asked.prompt_tokens)
        inside = {self._index[url] for url in among}
        avoid = [m for m in range(len(self._servers)) if m not in inside]
        choice = self.decisions.route(asked.prompt_tokens, asked.max_tokens, asked.tries, avoid)
        asked.tries += 1
        asked.flight = None
        if choice is None:
            return None
        p, t = choice.pair
        t = p if together else t
        if p not in inside or t not in inside:
            return None
        asked.choice, asked.flight = choice, Flight(asked.prompt_tokens, p, t)
        asked.pair = self._servers[p].url, self._servers[t].url
        self.state.place(asked.flight)
        return asked.pair

    def prompt_done(self, asked: Asked) -> None:
        """The answer has begun."""
        if asked.flight is not None:
            self.state.prompt_ended(asked.flight)

    def tokens(self, asked: Asked, count: int) -> None:
        """So many more events of the stream have passed."""
        if asked.flight is not None and count > 0:
            asked.events += count
            self.state.tokens(asked.flight, count)

    def done(self, asked: Asked, ok: bool, prompt_tokens: int | None, output_tokens: int | None) -> None:
        """The request is over.

        Args:
            ok: answered in full.
            prompt_tokens, output_tokens: from the answer's `usage`, None where it told none.
        """
        if asked.flight is None:
            return
        if prompt_tokens:
            self.lengths.learn(asked.characters, prompt_tokens)
        if ok:
            self.state.finished(asked.flight, output_tokens or max(1, asked.events))
        else:
            self.state.dropped(asked.flight)
        asked.flight = None
