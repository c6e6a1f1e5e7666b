"""`splitgym/Routing-v0`."""

from copy import deepcopy
from typing import Any, ClassVar

from splitgym import schedulers
from splitgym.envs.action import ActionCodec, RoutingActions
from splitgym.envs.base import SchedulingEnv
from splitgym.envs.config import RoutingConfig
from splitgym.errors import ConfigError
from splitgym.schedulers.builtin import CompiledSizing
from splitgym.schedulers.protocol import SizingScheduler
from splitgym.sim import Engine, make_engine


class RoutingEnv(SchedulingEnv):
    """Route each arriving request to a prompt machine and a token machine.

    ## Description
    A cluster serves a large language model with its machines split by phase (Splitwise, ISCA 2024): a
    *prompt* machine computes a request's first token and KV cache, which is shipped to a *token* machine that
    generates the rest. One step is one arriving request (or one that a machine's failure made start again).
    Nothing is known of a request's output length; it is estimated from completed requests.

    ## Action Space
    `MultiDiscrete([M, M])`: (prompt machine, token machine); equal means no split. With `flat=True`,
    `Discrete(M * M)`: p * M + t. M is `max_machines`.

    `action_masks()` gives the allowed machines: (2M,) booleans, with `flat=True` (M * M,). Failed and
    switching machines are masked; with `confine=True` also those outside the pools of the phase. A masked
    action is counted in `info["invalid_actions"]` and each forbidden machine in it becomes the next allowed
    index upward, wrapping round. An action outside the space is an `ActionError`.

    ## Observation Space
    A `Dict` of float32 arrays; `splitgym.observation.feature_table()` prints every feature with its range and
    meaning. None grows with the size of the cluster.

    | Key | Shape | Min | Max | Observation |
    |---|---|---|---|---|
    | machines | (M, 37) | 0 | 1 | a row a machine: state, and predictions for this request there |
    | cluster | (28,) | 0 | 1 | load, forecast, pools, waits, memory, misses, time since the last step |
    | request | (10,) | 0 | 1 | prompt tokens, `max_tokens` and its flag, expected output |
    | mask | (M,) | 0 | 1 | 1 for a machine, 0 for padding |

    ## Rewards
    By default (`good-minus-bad`) good minus bad completions until the next decision. A request is good when
    its TTFT slowdown is at most 3 and its TBT slowdown at most 1.5, against itself alone on a DGX-A100.
    Others by name: `slowdown-clipped`, `requests-in-system` (known to train badly here), `energy`, `cost`, or
    weights such as `{"good-minus-bad": 1, "energy": 1e-3}`. `info["reward_terms"]` holds the named terms,
    whose sum is the reward. Steps differ in simulated time: `info["elapsed_s"]` says how long one was, so
    that learners can discount by real time.

    ## Info
    Every step: `elapsed_s`; `decision_id` that the action answered and `next_decision_id` (-1: none);
    `reward_terms`; `outcomes_by_decision`, a list of (decision_id, good, TTFT slowdown, TBT slowdown) of the
    requests completed since, by the decision that placed them; `invalid_actions` of the episode so far;
    `metrics` so far (counts, goodput, mean slowdowns, pool sizes). Last step: `episode_metrics` (the fields
    of `splitgym.metrics.Metrics`, by name) and `requests` (a `splitgym.metrics.RequestTable`).

    ## Starting State
    An idle cluster at the beginning of a window drawn from the trace's part, advanced to the first arrival.
    `reset(options={"trace": trace})` runs a trace of your own instead.

    ## Episode End
    The window lasts `warmup_s + episode_s`. After its last decision all requests are served to the end, and
    the last step receives that tail, so that every request that arrived after the warm-up counts exactly
    once. The episode is then truncated; it never terminates.

    ## Arguments
    See `splitgym.envs.config.RoutingConfig`: `cluster`, `model`, `trace`, `part`, `rate_per_s`, `arrivals`,
    `episode_s`, `warmup_s`, `max_machines`, `reward`, `engine`, `confine` (off), `oracle`, `sizing`, `flat`;
    and `render_mode`: `ansi` (text), `rgb_array` (the last minute as a Gantt chart) or `human` (the same in a
    matplotlib window while the episode runs).

    >>> import gymnasium, splitgym
    >>> env = gymnasium.make("splitgym/Routing-v0", cluster="h100-80gb:2P2T", rate_per_s=8.0)
    >>> observation, info = env.reset(seed=1)
    >>> observation["machines"].shape
    (4, 37)
    >>> env.action_space
    MultiDiscrete([4 4])

    ## Version History
    * v0: first version
    """

    config: RoutingConfig
    config_type: ClassVar[type[RoutingConfig]] = RoutingConfig  # type: ignore[misc]

    def _make_codec(self) -> ActionCodec:
        return RoutingActions(self.max_machines, self.config.flat)

    def make_engine(self) -> Engine:
        return make_engine(self.cluster, None, sizing_scheduler(self.config.sizing), self.config.engine)


def sizing_scheduler(given: Any) -> SizingScheduler:
    """A sizing scheduler by name, a copy of a built-in one, or the object itself.

    Environments made with one built-in scheduler do not share what it remembers.

    Raises:
        ConfigError: neither.
    """
    if isinstance(given, str):
        return schedulers.sizing(given)
    if not isinstance(given, SizingScheduler):
        raise ConfigError(
            f"sizing is {given!r}: expected one of {', '.join(schedulers.sizing_names())}, or a scheduler"
        )
    return deepcopy(given) if isinstance(given, CompiledSizing) else given
