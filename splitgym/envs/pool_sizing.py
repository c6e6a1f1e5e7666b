"""`splitgym/PoolSizing-v0`."""

from bisect import bisect_left
from copy import deepcopy
from typing import Any, ClassVar

from splitgym import schedulers
from splitgym.envs.action import ActionCodec, SizingActions
from splitgym.envs.base import NO_DECISION, SchedulingEnv
from splitgym.envs.config import PoolSizingConfig
from splitgym.envs.reward import Completion
from splitgym.errors import ConfigError
from splitgym.schedulers.builtin import CompiledRouting
from splitgym.schedulers.protocol import RoutingScheduler
from splitgym.sim import Engine, make_engine
from splitgym.types import Decision


class PoolSizingEnv(SchedulingEnv):
    """Move machines between the prompt and the token pool, once a control interval.

    ## Description
    The cluster of `splitgym/Routing-v0`, with requests routed by a named scheduler inside. One step is one
    control interval (`ClusterConfig.control_interval_s`, 2 s by default).

    ## Action Space
    `Discrete(2K + 1)`, K = `max_moves`: K does nothing, K + n moves n machines from the token to the prompt
    pool, K - n moves n from the prompt to the token pool: the least loaded available machines of the pool,
    the lowest index on ties. A moved machine finishes the work it has.

    `action_masks()`, (2K + 1,) booleans, forbids moves that would leave fewer than
    `ClusterConfig.min_pool_machines` available machines at home in a pool. A masked action is counted in
    `info["invalid_actions"]` and moves as many machines as it may. An action outside the space is an
    `ActionError`.

    ## Observation Space
    As in `splitgym/Routing-v0`; `request` is zeros, and the predictions are for a request of the recent mean
    prompt length.

    ## Rewards
    As in `splitgym/Routing-v0`. `info["outcomes_by_decision"]` names the last control tick before the request
    arrived (-1: none).

    ## Starting State
    An idle cluster at the beginning of a window, advanced to the first control tick.

    ## Episode End
    As in `splitgym/Routing-v0`. After the window's end nothing is asked any more: pools stay as they are
    while the last requests are served, and the last step receives that tail. Truncated, never terminated.

    ## Arguments
    See `splitgym.envs.config.PoolSizingConfig`: those of Routing without `sizing` and `flat`; `routing`
    (default "splitwise", the paper's), `max_moves` (1). `confine` is on: with free routing, pool sizes mean
    little.

    ## Version History
    * v0: first version
    """

    config: PoolSizingConfig
    config_type: ClassVar[type[PoolSizingConfig]] = PoolSizingConfig  # type: ignore[misc]
    confined: ClassVar[bool] = True

    def _make_codec(self) -> ActionCodec:
        return SizingActions(self.config.max_moves, self.cluster.config.min_pool_machines)

    def make_engine(self) -> Engine:
        return make_engine(self.cluster, routing_scheduler(self.config.routing), None, self.config.engine)

    def _begin(self) -> None:
        self._ticks: list[tuple[int, int]] = []  # (time [ns], decision) of the episode's decisions

    def _answering(self, decision: Decision) -> None:
        self._ticks.append((decision.now_ns, decision.decision_id))

    def _cause(self, completion: Completion) -> int:
        arrival_ns = int(self.engine.outcomes().arrival_ns[completion.request_id])
        place = bisect_left(self._ticks, (arrival_ns, 0))
        return self._ticks[place - 1][1] if place else NO_DECISION


def routing_scheduler(given: Any) -> RoutingScheduler:
    """A routing scheduler by name, a copy of a built-in one, or the object itself.

    Environments made with one built-in scheduler do not share what it remembers.

    Raises:
        ConfigError: neither.
    """
    if isinstance(given, str):
        return schedulers.routing(given)
    if not isinstance(given, RoutingScheduler):
        raise ConfigError(
            f"routing is {given!r}: expected one of {', '.join(schedulers.routing_names())}, or a scheduler"
        )
    return deepcopy(given) if isinstance(given, CompiledRouting) else given
