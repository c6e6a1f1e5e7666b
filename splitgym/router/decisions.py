"""Who gets a request: the policy within its guardrails, the heuristic where it fails, both in shadow mode."""

import time
from collections import Counter, deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from splitgym import policy as bundles
from splitgym import schedulers
from splitgym.cluster import Cluster
from splitgym.envs.action import next_allowed
from splitgym.errors import ConfigError
from splitgym.policy.find import complete
from splitgym.router.config import PolicyConfig
from splitgym.router.records import Attempt
from splitgym.router.state import RouterState
from splitgym.schedulers.protocol import RoutingScheduler, SizingScheduler
from splitgym.types import NS_PER_S, UNKNOWN, RequestInfo

By = Literal["policy", "heuristic"]
Pair = tuple[int, int]

FALLBACKS = ("deadline", "error", "not_finite", "not_allowed", "suspended")
"""Why the heuristic stood in."""


class Choice(NamedTuple):
    """A decision and how it came about."""

    decision_id: int
    pair: Pair
    by: By
    reason: str  # "" where the policy decided, else one of FALLBACKS, or "shadow"
    wanted: Pair | None  # what the policy said, where that is not `pair`
    took_us: float


@dataclass(frozen=True)
class Deciders:
    """A policy that was loaded: who routes, who resizes, what it is."""

    routing: RoutingScheduler
    sizing: SizingScheduler
    name: str
    sha256: str  # of the bundle; "" of a plain scheduler
    confine: bool

    @classmethod
    def load(cls, routing: str, sizing: str | None, confine: bool | None) -> "Deciders":
        """From the names of a configuration.

        Raises:
            SplitgymError: no such scheduler or bundle, or a bundle that is refused.
        """
        who, size, digest, learned = _routing(routing)
        if sizing is not None:
            size, keeps = _sizing(sizing)
            learned = learned or keeps
        name = who.name if sizing is None else f"{who.name}+{size.name}"
        return cls(who, size, name, digest, learned if confine is None else confine)

    def warm(self, state: RouterState) -> None:
        """Decide once on a state of nobody, so that no request waits for the compiler.

        Args:
            state: of the same servers, thrown away afterwards. The schedulers must be reset before use.
        """
        request = RequestInfo(0, 0, 100, UNKNOWN, UNKNOWN, 0)
        view = state.refresh()
        for scheduler in (self.routing, self.sizing):
            scheduler.reset(view, 0)
        with suppress(Exception):  # what a policy raises is the guardrails' matter
            self.routing.route(view, request)
        with suppress(Exception):
            self.sizing.resize(view)


def _routing(text: str) -> tuple[RoutingScheduler, SizingScheduler, str, bool]:
    if text in schedulers.routing_names():
        return schedulers.routing(text), schedulers.sizing("static"), "", False
    if not bundles.is_bundle(text) and "/" not in text and not Path(text).exists():
        raise ConfigError(
            f"policy {text!r} is no scheduler ({', '.join(schedulers.routing_names())}), no bundle's folder "
            "and no pretrained:NAME"
        )
    loaded = bundles.load(bundles.locate(text))
    routing, sizing = complete(loaded)
    return routing, sizing, loaded.sha256, loaded.manifest.action.confine


def _sizing(text: str) -> tuple[SizingScheduler, bool]:
    """Who resizes, and whether it learned with phases confined to their pools."""
    if text in schedulers.sizing_names() or not bundles.is_bundle(text):
        return schedulers.sizing(text), False
    loaded = bundles.load(bundles.locate(text))
    if not loaded.resizes:
        raise ConfigError(f"policy.sizing {text}: that bundle routes, it does not resize pools")
    return loaded, loaded.manifest.action.confine


class Decisions:
    """Decides, with guardrails.

    Args:
        config: deadline, shadow mode, the heuristic.
        deciders: the policy.
        state: whose view is decided on.
        seed: of everything random.

    Attributes:
        fallbacks: times that the heuristic stood in, by reason.
        decided: decisions by who took them.
    """

    def __init__(self, config: PolicyConfig, deciders: Deciders, state: RouterState, seed: int = 0) -> None:
        self.config = config
        self.state = state
        self.heuristic = schedulers.routing(config.heuristic)
        self.shadow = config.shadow
        self.fallbacks: Counter[str] = Counter()
        self.sizing_fallbacks: Counter[str] = Counter()
        self.decided: Counter[str] = Counter()
        self.agreed: Counter[bool] = Counter()  # of the policy with the heuristic, in shadow mode
        self.recent: deque[tuple[str, Attempt]] = deque(maxlen=100)  # with the request's id
        self._seed = seed
        self._number = 0
        self._failed = 0
        self._suspended_until_ns = 0
        self.swap(deciders)

    def swap(self, deciders: Deciders) -> None:
        """Another policy from now on; the old one stays where the new one cannot begin.

        Raises:
            ConfigError: it knows fewer machines than there are servers.
        """
        view = self.state.refresh()
        for scheduler in (deciders.routing, deciders.sizing):
            scheduler.reset(view, self._seed)
        self.heuristic.reset(view, self._seed)
        self.deciders = deciders
        self.state.set_confine(deciders.confine)
        self._failed = 0
        self._suspended_until_ns = 0

    def grow(self, cluster: Cluster) -> None:
        """There are more servers from now on.

        Args:
            cluster: begins with the machines of the present one.

        Raises:
            ConfigError: the policy knows fewer machines; nothing has changed then.
        """
        grown = self.state.grown(cluster)
        for scheduler in (self.deciders.routing, self.deciders.sizing):
            scheduler.reset(grown, self._seed)
        self.state.adopt(cluster, grown)
        self.swap(self.deciders)

    def route(
        self, prompt_tokens: int, max_tokens: int | None, attempt: int, avoid: Collection[int] = ()
    ) -> Choice | None:
        """Servers for a request; None where no server is up.

        Args:
            prompt_tokens, max_tokens: of the request; None where the client gave no limit.
            attempt: earlier tries.
            avoid: servers that have just failed it; not chosen while there are others.
        """
        view = self.state.refresh()
        if not self.state.can_route:
            return None
        request = RequestInfo(
            self._number,
            int(view.clock[0]),
            prompt_tokens,
            UNKNOWN if max_tokens is None else max_tokens,
            UNKNOWN,
            attempt,
        )
        self._number += 1
        if avoid:
            choice = self._decide_without(request, avoid)
        else:
            choice = self._decide(request)
        self.decided[choice.by] += 1
        return choice

    def _decide_without(self, request: RequestInfo, avoid: Collection[int]) -> Choice:
        view = self.state.view
        kept = view.prompt_allowed.copy(), view.token_allowed.copy()
        try:
            for flags in (view.prompt_allowed, view.token_allowed):
                self._leave_out(flags, avoid)
            return self._decide(request)
        finally:
            view.prompt_allowed[:], view.token_allowed[:] = kept

    @staticmethod
    def _leave_out(flags: object, avoid: Collection[int]) -> None:
        for m in avoid:
            if flags.sum() > flags[m]:  # type: ignore[attr-defined, index]
                flags[m] = 0  # type: ignore[index]

    def _decide(self, request: RequestInfo) -> Choice:
        start = time.perf_counter_ns()
        wanted, reason = self._ask(request)
        own: Pair | None = None
        if reason or self.shadow:
            own = self._by_heuristic(request)
        took_us = (time.perf_counter_ns() - start) / 1e3
        number = self._number - 1
        if own is None:
            assert wanted is not None
            return Choice(number, wanted, "policy", "", None, took_us)
        if reason:
            self.fallbacks[reason] += 1
        if self.shadow and wanted is not None:
            self.agreed[wanted == own] += 1
        return Choice(number, own, "heuristic", reason or "shadow", wanted, took_us)

    def _ask(self, request: RequestInfo) -> tuple[Pair | None, str]:
        """(the policy's pair or None, why it does not count)."""
        view = self.state.view
        now = int(view.clock[0])
        if now < self._suspended_until_ns:
            return None, "suspended"
        start = time.perf_counter_ns()
        pair: Pair | None = None
        reason = ""
        try:
            p, t = self.deciders.routing.route(view, request)
            pair = int(p), int(t)
        except Exception as error:  # whatever a policy raises must not cost a request
            reason = "not_finite" if "finite" in str(error) else "error"
        took_ns = time.perf_counter_ns() - start
        if pair is not None:
            m = len(view.machine_row)
            inside = 0 <= pair[0] < m and 0 <= pair[1] < m
            if not inside or not (view.prompt_allowed[pair[0]] and view.token_allowed[pair[1]]):
                pair, reason = None, "not_allowed"
            elif took_ns > self.config.deadline_ms * 1e6:
                reason = "deadline"
        self._failed = self._failed + 1 if reason else 0
        if self._failed >= self.config.suspend_after:
            self._failed = 0
            self._suspended_until_ns = now + round(self.config.suspend_s * NS_PER_S)
        return pair, reason

    def _by_heuristic(self, request: RequestInfo) -> Pair:
        """The heuristic's pair; should even that fail, the first servers that may be chosen."""
        view = self.state.view
        try:
            p, t = self.heuristic.route(view, request)
            if view.prompt_allowed[p] and view.token_allowed[t]:
                return int(p), int(t)
        except Exception:
            self.fallbacks["error"] += 1
        return next_allowed(view.prompt_allowed, 0), next_allowed(view.token_allowed, 0)

    def resize(self) -> int:
        """Servers that the policy wants to move from the token to the prompt pool; 0 where it fails."""
        view = self.state.refresh()
        try:
            moved = int(self.deciders.sizing.resize(view))
        except Exception as error:
            self.sizing_fallbacks["not_finite" if "finite" in str(error) else "error"] += 1
            return 0
        m = len(view.machine_row)
        if not -m <= moved <= m:
            self.sizing_fallbacks["not_allowed"] += 1
            return 0
        return 0 if self.shadow else moved
