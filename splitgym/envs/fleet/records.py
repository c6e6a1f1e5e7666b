"""The record of one environment of a fleet: what compiled code needs beside its simulation."""

from typing import Any

import numpy as np

from splitgym.observation import kernel
from splitgym.sim.compiled.reach import record_reader
from splitgym.sim.compiled.records import HEAD

# What is asked of the agent.
ROUTING, SIZING, JOINT = range(3)

# What the next call of the kernel does with an environment.
WAITS, ANSWERS, RUNS = range(3)
# WAITS: nothing. ANSWERS: apply the action and advance. RUNS: advance, at the begin of an episode or after
# an array has grown.

TERMS = ("good", "bad", "slowdown", "requests_in_system", "cost")
"""Columns of the reward's terms, without weights."""

_LONGS = (
    "head",  # address of the simulation
    "stage",  # see above
    "why",  # 0, or what the simulation lacks (`splitgym.sim.compiled.state`)
    "begun",  # the episode has had its first decision
    "over",  # and its last
    "question",  # 0 none, 1 route, 2 resize
    "end_ns",  # the window's: no resizing is asked for after it
    "warmup_ns",
    "references",  # address of (3, N) float64: TTFT, TBT, E2E alone on the reference machine [s]
    "first",  # the first request that counts
    "arrivals_seen",
    "arrived",
    "completed",
    "good",
    "with_tbt",
    "finished_from",  # completions of the last step: places in the order of finishing
    "finished_seen",
    "before_ns",
    "integral_ns",
    "invalid",  # actions so far that were mapped to others
    "answered",  # decision that the last action answered
    "asked",  # the pending one
)
_REALS = ("elapsed_s", "reward", "slowdown_ttft", "slowdown_tbt", "slowdown_e2e")

SEAT = np.dtype(
    [
        *((name, np.int64) for name in _LONGS),
        *((name, np.float64) for name in _REALS),
        ("terms", np.float64, (len(TERMS),)),
        ("sums", np.float64, (len(TERMS),)),  # of the terms, since they were last drained
        ("memory", np.float64, (kernel.NUM_MEMORY,)),
        ("last", np.int64, (kernel.NUM_LAST,)),
    ],
    align=True,
)

OFFICE = np.dtype(
    [
        *(
            (name, np.int64)
            for name in (
                "kind",  # ROUTING, SIZING or JOINT
                "one_number",  # one number instead of two
                "max_machines",
                "max_moves",
                "min_pool",
            )
        ),
        *((name, np.float64) for name in ("ttft_slo", "tbt_slo", "slowdown_limit", "cost_per_hour")),
        ("num_terms", np.int64),  # of the reward: columns and weights in the order of its sum
        ("columns", np.int64, (len(TERMS),)),
        ("weights", np.float64, (len(TERMS),)),
        # Arrays that the fleet keeps, by address; those of observations twice, for turn 0 and 1.
        *(
            (name, np.int64)
            for name in (
                "seats",  # (N,) `SEAT`
                "places",  # (N,) int64: environments to step
                "actions",  # (N, 3) int64
                "sizes",  # (num_sizes,) int64: numbers that an action chooses among
                "machines",  # (2, N, M, F) float32
                "cluster",  # (2, N, G) float32
                "request",  # (2, N, R) float32
                "mask",  # (2, N, M) float32
                "prior",  # (2, N, M, 3) float32
                "prior_weights",  # (num_prior,) float64
                "allowed",  # (N, num_allowed) uint8: the next action masks
                "said_reals",  # (SAID_REALS + num_terms, N) float64, see below
                "said_longs",  # (SAID_LONGS, N) int64
                "num_envs",
                "num_sizes",
                "num_prior",
                "num_allowed",
                "turn",
            )
        ),
    ],
    align=True,
)
"""What the environments of a fleet share."""

# Rows of what a step says of each environment: reals, then the weighted terms; and whole numbers.
SAID_REWARD, SAID_ELAPSED, SAID_REALS = range(3)
SAID_ANSWERED, SAID_ASKED, SAID_INVALID, SAID_OVER, SAID_LONGS = range(5)

seat_at: Any = record_reader(SEAT)
office_at: Any = record_reader(OFFICE)
head_at: Any = record_reader(HEAD)
