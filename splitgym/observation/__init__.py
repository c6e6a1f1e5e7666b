"""ClusterView and RequestInfo -> arrays. The same code serves the simulator and the live router.

It reads nothing but the view, so what a policy learns on in the simulator is what it sees in production.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import ConfigError
from splitgym.observation import kernel, rows
from splitgym.observation.features import (
    CLUSTER_FEATURES,
    MACHINE_FEATURES,
    PRIOR_FEATURES,
    REQUEST_FEATURES,
    SCHEMA_VERSION,
    Feature,
    feature_table,
    observation_space,
    schema,
    schema_hash,
)
from splitgym.observation.prior import NO_PRIOR, Floats, fill_prior, prior_weights
from splitgym.schedulers.lanes import num_blocks
from splitgym.types import UNKNOWN, RequestInfo
from splitgym.view import NUM_COUNTERS, ClusterView

Observation = dict[str, NDArray[Any]]

_NO_REQUEST = RequestInfo(UNKNOWN, 0, 1, UNKNOWN, UNKNOWN, 0)


class Observer:
    """Turns views into observations, and remembers recent arrival rates between them.

    Args:
        max_machines: M of the arrays; rows beyond the cluster's machines are zeros.
        prior: weights of `prior_weights`; empty for an observation without a prior.
    """

    def __init__(self, max_machines: int, prior: Floats = NO_PRIOR) -> None:
        self.max_machines = max_machines
        self.prior = prior
        self._memory = np.zeros(kernel.NUM_MEMORY)
        self._last = np.zeros(kernel.NUM_LAST, np.int64)
        self._lanes = np.zeros(num_blocks(max_machines) * rows.SEEN_BLOCK)
        self._shown = np.zeros((max_machines, rows.NUM_FEATURES), np.float32)

    def reset(self, view: ClusterView) -> None:
        """Forget; rates count from the view's present state.

        Raises:
            ConfigError: the cluster has more machines than the observation.
        """
        machines = len(view.machine_row)
        if machines > self.max_machines:
            raise ConfigError(f"max_machines is {self.max_machines}, but the cluster has {machines} machines")
        self._memory[:] = 0.0
        self._last[:NUM_COUNTERS] = view.counters
        self._last[kernel.LAST_CLOCK] = view.clock[0]

    def observe(self, view: ClusterView, request: RequestInfo | None) -> Observation:
        """One observation, in fresh arrays. Call it once a decision: recent rates move on to the view's time.

        Args:
            view: the cluster now.
            request: what is to be routed; None at a control tick, when predictions are for a request of the
                recent mean prompt length.

        Returns:
            "machines" (M, F), "cluster" (G,), "request" (R,), "mask" (M,), all float32; with a prior also
            "prior" (M, 3), zeros at a control tick.
        """
        size = self.max_machines
        machines = np.zeros((size, len(MACHINE_FEATURES)), np.float32)
        cluster = np.zeros(len(CLUSTER_FEATURES), np.float32)
        wanted = np.zeros(len(REQUEST_FEATURES), np.float32)
        mask = np.zeros(size, np.float32)
        kernel.fill(
            view,
            _NO_REQUEST if request is None else request,
            request is not None,
            self._memory,
            self._last,
            self._lanes,
            self._shown,
            machines,
            cluster,
            wanted,
            mask,
        )
        found: Observation = {"machines": machines, "cluster": cluster, "request": wanted, "mask": mask}
        if len(self.prior):
            found["prior"] = np.zeros((size, len(PRIOR_FEATURES)), np.float32)
            if request is not None:
                fill_prior(view, request, self.prior, found["prior"])
        return found


__all__ = [
    "Observation",
    "Observer",
    "observation_space",
    "schema",
    "schema_hash",
    "feature_table",
    "Feature",
    "MACHINE_FEATURES",
    "PRIOR_FEATURES",
    "prior_weights",
    "CLUSTER_FEATURES",
    "REQUEST_FEATURES",
    "SCHEMA_VERSION",
]
