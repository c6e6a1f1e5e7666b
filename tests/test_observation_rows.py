"""What an observation keeps of each machine: true to the formulas, and to a machine that has changed."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_view import make_request, views

from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, Fault, VllmBatchingConfig, parse_machines
from splitgym.envs import JointEnv, RoutingEnv
from splitgym.envs.fleet import Fleet
from splitgym.observation import Observer, rows
from splitgym.profile.tables import prompt_time_ns, token_time_ns
from splitgym.schedulers import predict
from splitgym.schedulers.lanes import LANES, OWN_NS, num_blocks
from splitgym.types import Pool, RequestInfo
from splitgym.view import ClusterView

KEPT = [*range(OWN_NS), rows.PROMPT_SPEED, rows.TOKEN_SPEED]
"""Rows of a block that only the machine changes."""


def squash(x: float, scale: float) -> float:
    return x / (x + scale)


def clip(x: float, high: float) -> float:
    return min(high, max(0.0, x))


def least(values: np.ndarray, allowed: np.ndarray) -> float:
    """Of the machines that may be chosen; of all where none may be."""
    return float(min(values[allowed != 0], default=values.min()))


def machines_of(view: ClusterView, request: RequestInfo) -> np.ndarray:
    """(m, F) machine features, written down one by one as `splitgym.observation.features` says."""
    count, tables, full = len(view.machine_row), view.tables, view.rules.max_prompt_tokens
    x = np.zeros((count, predict.NUM_PREDICTIONS))
    predict.predict_request(view, request, x)
    wait, ttft = x[:, predict.WAIT_S], x[:, predict.TTFT]
    split, same = x[:, predict.TBT_SPLIT], x[:, predict.TBT_SAME]
    wait_min, ttft_min = least(wait, view.prompt_allowed), least(ttft, view.prompt_allowed)
    split_min = least(split, view.token_allowed)
    found = []
    for m in range(count):
        kind = int(view.machine_row[m])
        speed = prompt_time_ns(tables, 0, full) / prompt_time_ns(tables, kind, full)
        decode = token_time_ns(tables, 0, 32, 32768) / token_time_ns(tables, kind, 32, 32768)
        found.append(
            [
                squash(speed, 1.0),
                squash(decode, 1.0),
                squash(float(view.kv_capacity_tokens[m]), 131072.0),
                squash(view.link_bytes_per_s[m] / view.rules.kv_bytes_per_token, 16384.0),
                *(view.home_pool[m] == pool for pool in (Pool.PROMPT, Pool.TOKEN, Pool.MIXED)),
                *(view.pool[m] == pool for pool in (Pool.PROMPT, Pool.TOKEN, Pool.MIXED)),
                view.available[m],
                view.prompt_allowed[m],
                view.token_allowed[m],
                squash(float(view.prompt_requests[m]), 4.0),
                squash(float(view.prompt_tokens[m]), 4096.0),
                squash(wait[m], 1.0),
                squash(max(0.0, wait[m] - wait_min), 0.25),
                x[m, predict.SHARE],
                squash(float(view.running[m]), 32.0),
                squash(float(view.running_context_tokens[m]), 32768.0),
                squash(float(view.inbound[m]), 8.0),
                squash(float(view.inbound_prompt_tokens[m]), 8192.0),
                squash(float(view.transfers[m]), 4.0),
                clip(x[m, predict.MEMORY_USED], 1.0),
                0.5 * clip(x[m, predict.MEMORY_PROMISED], 2.0),
                squash(ttft[m], 1.0),
                clip(4.0 * (ttft[m] - 0.8), 1.0),
                squash(max(0.0, ttft[m] - ttft_min), 0.25),
                squash(split[m], 1.0),
                clip(6.0 * (split[m] - 0.85), 1.0),
                squash(max(0.0, split[m] - split_min), 0.25),
                squash(same[m], 1.0),
                clip(6.0 * (same[m] - 0.85), 1.0),
                squash(x[m, predict.ITERATION], 1.0),
                squash(x[m, predict.PROMPT_TIME], 1.0),
                squash(x[m, predict.HARM_PROMPT], 1.0),
                squash(max(0.0, x[m, predict.HARM_TOKEN]), 1.0),
            ]
        )
    return np.array(found, np.float64).astype(np.float32)


@settings(max_examples=60)
@given(views(max_machines=19), st.integers(1, 20_000), st.booleans())
def test_machine_features_are_their_formulas_to_the_last_bit(view, prompt, closed) -> None:
    if closed:
        view.prompt_allowed[:] = view.token_allowed[:] = 0
    request, count = make_request(prompt), len(view.machine_row)
    observer = Observer(count + 1)
    observer.reset(view)
    seen = observer.observe(view, request)["machines"]
    np.testing.assert_array_equal(seen[:count], machines_of(view, request))
    assert not seen[count:].any()


def kept(fleet: Fleet, i: int) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, rows, LANES) and (m, 21): what environment i's engine keeps."""
    arrays = fleet._engines[i]._simulation._kept
    moving = [*range(rows.FIRST_MOVING, rows.FIRST_MOVING + rows.NUM_FIRST)]
    moving += range(rows.LATER_MOVING, rows.NUM_FEATURES)
    lanes = arrays["lanes"].reshape(-1, rows.SEEN_BLOCK // LANES, LANES)[:, KEPT]
    return lanes, np.delete(arrays["shown"], moving, axis=1)


def anew(view: ClusterView) -> tuple[np.ndarray, np.ndarray]:
    """The same of a view from which all is written."""
    count = len(view.machine_row)
    lanes = np.zeros(num_blocks(count) * rows.SEEN_BLOCK)
    shown = np.zeros((count, rows.NUM_FEATURES), np.float32)
    rows.lay_all(view, lanes, shown)
    moving = [15, 16, 17, *range(24, 37)]
    blocks = lanes.reshape(-1, rows.SEEN_BLOCK // LANES, LANES)[:, KEPT]
    return blocks, np.delete(shown, moving, axis=1)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    joint=st.booleans(),
    machines=st.sampled_from(["h100-80gb:2P+a100-80gb:2T", "h100-80gb:6P6T", "h100-80gb:1P1T1M"]),
    vllm=st.booleans(),
    faults=st.booleans(),
    confine=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_is_kept_is_what_writing_all_would_give(joint, machines, vllm, faults, confine, seed) -> None:
    """At every decision, under failures and machines that change pools."""
    groups = parse_machines(machines)
    cluster = ClusterConfig(
        model="llama2-70b",
        machines=groups,
        batching=VllmBatchingConfig() if vllm else ClusterConfig().batching,
        faults=tuple(Fault(machine=m, at_s=1.0 + m, duration_s=1.5) for m in range(2)) if faults else (),
        switch_delay_s=0.3,
        control_interval_s=0.5,
    )
    kind = JointEnv if joint else RoutingEnv
    extra = {} if joint else {"sizing": "reactive"}
    env = kind(
        cluster=cluster,
        confine=confine,
        trace="azure-conv-synth",
        rate_per_s=3.0 * len(Cluster.resolve(cluster).machine_row),
        episode_s=4.0,
        warmup_s=1.0,
        **extra,
    )
    fleet, rng = Fleet(env, 2, 1), np.random.default_rng(seed)
    fleet.begin(np.arange(2), {0: seed, 1: seed + 1})
    changed, before, steps = 0, None, 0
    while not fleet.over.all():
        for i in range(2):
            ours, fresh = kept(fleet, i), anew(fleet._engines[i].view)
            np.testing.assert_array_equal(ours[0], fresh[0])
            np.testing.assert_array_equal(ours[1], fresh[1])
        now = kept(fleet, 0)[1].copy()
        changed += before is not None and not np.array_equal(now, before)
        before = now
        sizes = getattr(env.action_space, "nvec", None)
        fleet.step(np.stack([rng.integers(0, n, 2) for n in sizes], axis=1))
        steps += 1
    assert changed > steps // 2, "machines do change"


def test_a_machine_that_nothing_touched_is_not_written() -> None:
    """Of two machines one is never used: what is kept of it stays as it is, here a number of ours."""
    env = RoutingEnv(cluster="h100-80gb:3P1T", rate_per_s=2.0, trace="azure-conv-synth", episode_s=4.0)
    fleet = Fleet(env, 1)
    fleet.begin(np.arange(1), {0: 1})
    arrays = fleet._engines[0]._simulation._kept
    arrays["shown"][1, 13] = 0.625
    fleet.step(np.array([[0, 3]]))
    fleet.step(np.array([[0, 3]]))
    assert fleet.observations["machines"][0, 1, 13] == np.float32(0.625)
    fleet.step(np.array([[1, 3]]))
    assert fleet.observations["machines"][0, 1, 13] != np.float32(0.625)
