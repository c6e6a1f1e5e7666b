"""Constants of the compiled engine."""

from splitgym.types import EventKind, Pool

NONE = -1
FAR = 1 << 62
"""A time that never comes."""

# Phases of a job, as `splitgym.sim.job.Phase`.
QUEUED, PROMPT, SHIPPING, READY, RUNNING, ELSEWHERE = range(6)
# ELSEWHERE: about to be routed again.

# Why `advance` returned.
DECIDE, DONE, GROW_JOBS, GROW_HEAP, GROW_TIMELINE, GROW_LOG, FEED, DRAIN = range(8)
# FEED: the requests that are known have all come. DRAIN: the place for finished ones is full.

PAPER, VLLM = range(2)
"""Rules of batching."""

SPLITWISE, INDEX, RESIDUAL, OBSERVED = 1, 2, 3, 4
"""Forms of routing of their own. OBSERVED: compiled code is asked, and looks at what `observed` keeps."""

TO_PROMPT, TO_TOKEN, TO_MIXED = int(Pool.PROMPT), int(Pool.TOKEN), int(Pool.MIXED)

KIND_SHIFT = 40
"""An event's key: its kind, then the machine or request that it concerns."""
INDEX_MASK = (1 << KIND_SHIFT) - 1
ITERATION_KEY = (int(EventKind.ITERATION_END) + 1) << KIND_SHIFT
TRANSFER_KEY = (int(EventKind.TRANSFER_END) + 1) << KIND_SHIFT
SWITCH_KEY = (int(EventKind.SWITCH_END) + 1) << KIND_SHIFT
FAILURE_KEY = (int(EventKind.FAILURE) + 1) << KIND_SHIFT
RECOVERY_KEY = (int(EventKind.RECOVERY) + 1) << KIND_SHIFT
CONTROL_KEY = (int(EventKind.CONTROL) + 1) << KIND_SHIFT
REROUTE_KEY = (int(EventKind.REROUTE) + 1) << KIND_SHIFT
ARRIVAL_KEY = (int(EventKind.ARRIVAL) + 1) << KIND_SHIFT

JOINED_MASK = (1 << 32) - 1
"""The low half of the order of a `TASK`."""

BERTH_BITS = 24
"""The key of a transfer's next stage: its request, and its berth in the low bits."""
BERTH_MASK = (1 << BERTH_BITS) - 1

WORK_PER_BYTE = 15_625_000
"""Units of transfer work: bandwidth in 64 bytes/s times nanoseconds."""
