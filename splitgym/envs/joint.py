"""`splitgym/Joint-v0`."""

from typing import ClassVar

from splitgym.envs.action import ActionCodec, JointActions
from splitgym.envs.base import SchedulingEnv
from splitgym.envs.config import JointConfig
from splitgym.sim import Engine, make_engine


class JointEnv(SchedulingEnv):
    """Route requests and resize pools, whichever comes next.

    ## Description
    The cluster of `splitgym/Routing-v0`. One step is one arriving request or one control interval
    (`ClusterConfig.control_interval_s`), whichever comes next; `request[0]` of the observation is 1 for a
    request.

    ## Action Space
    `MultiDiscrete([M + 1, M + 1, 2K + 1])`: (prompt machine, token machine, resize). Index M of the first two
    means "does not apply", and so does K, no move, of the third. For a request the third must be K; at a
    control tick the first two must be M.

    `action_masks()` gives (2M + 2 + 2K + 1,) booleans for the decision at hand. A masked action is counted in
    `info["invalid_actions"]`; machines and moves are mapped as in `splitgym/Routing-v0` and
    `splitgym/PoolSizing-v0`, and the part that does not apply is ignored. An action outside the space is an
    `ActionError`.

    ## Observation Space
    As in `splitgym/Routing-v0`; at a control tick `request` is zeros, and the predictions are for a request
    of the recent mean prompt length.

    ## Rewards
    As in `splitgym/Routing-v0`. `info["outcomes_by_decision"]` names routing decisions.

    ## Starting State
    An idle cluster at the beginning of a window, advanced to the first decision.

    ## Episode End
    As in `splitgym/Routing-v0`. After the window's end no resizing is asked for any more. Truncated, never
    terminated.

    ## Arguments
    See `splitgym.envs.config.JointConfig`: those of Routing without `sizing` and `flat`; `max_moves` (K = 1).
    `confine` is on.

    ## Version History
    * v0: first version
    """

    config: JointConfig
    config_type: ClassVar[type[JointConfig]] = JointConfig  # type: ignore[misc]
    confined: ClassVar[bool] = True

    def _make_codec(self) -> ActionCodec:
        return JointActions(self.max_machines, self.config.max_moves, self.cluster.config.min_pool_machines)

    def make_engine(self) -> Engine:
        return make_engine(self.cluster, None, None, self.config.engine)
