"""Requests that come while time goes on: the schedule of every token is the simulator's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MS, Fixed, Moves, tiny_cluster, tiny_profile

from splitgym.sim.live import Live, live_engine
from splitgym.sim.live_request import Kind, LiveRequest
from splitgym.sim.simpy_engine import simpy_engine
from splitgym.trace import Trace

RULES = ({}, {"kv_reserve": "at_transfer"}, {"vllm": {"max_num_batched_tokens": 64, "block_size": 4}})
SIZES = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=12
)


def trace_of(rows, more=0):
    rows = sorted(rows)
    return Trace(
        np.array([row[0] / 1e3 for row in rows]),
        np.array([row[1] for row in rows]),
        np.array([row[2] + more for row in rows]),
    )


def simulated(cluster, trace, pair):
    """(first token, finish) of every request by the specification, and the iterations' ends by machine."""
    engine = simpy_engine(cluster, Fixed(pair), Moves())
    engine.reset(trace)
    engine.run_until_decision()
    return engine.outcomes()


def play(live: Live) -> None:
    while live.next_ns != float("inf"):
        live.step_to(int(live.next_ns))


def idle(live: Live) -> bool:
    """Nothing is left anywhere: no memory held, no work queued, nobody remembered."""
    machines = [(m.reserved, m.used, m.queued_prompt_tokens, m.queued_ns) for m in live.machines]
    left = [bool(m.batch or m.prompt_queue or m.inbound or m.outbound or m.iteration) for m in live.machines]
    return not any(map(any, machines)) and not any(left) and not live.accounts.requests


@settings(max_examples=60)
@given(SIZES, st.sampled_from(RULES), st.sampled_from([150, 400, 5_000]))
def test_whole_requests_run_as_in_the_simulator(rows, rules, capacity):
    cluster = tiny_cluster("M", tiny_profile(capacity=capacity, context_us=3), **rules)
    trace = trace_of(rows)
    wanted = simulated(cluster, trace, (0, 0))
    live = live_engine(cluster)
    requests = [
        LiveRequest(0, int(p), int(o), schedule=[]) for p, o in zip(trace.prompt_tokens, trace.output_tokens)
    ]
    for request, arrival in zip(requests, wanted.arrival_ns.tolist()):
        live.step_to(arrival)
        live.submit(request, arrival)
    play(live)
    assert [r.first_token_ns for r in requests] == wanted.first_token_ns.tolist()
    assert [r.last_token_ns for r in requests] == wanted.finish_ns.tolist()
    assert [r.preemptions for r in requests] == wanted.preemptions.tolist()
    assert [len(r.schedule) for r in requests] == trace.output_tokens.tolist()
    assert idle(live)


@settings(max_examples=60)
@given(SIZES, st.sampled_from(RULES), st.sampled_from([400, 5_000]))
def test_a_pulled_cache_takes_the_simulators_time(rows, rules, capacity):
    # The token server makes the first token again: one output token more for the simulator.
    cluster = tiny_cluster(
        "MM", tiny_profile(capacity=capacity, nic_tokens_per_ms=1.7), mode="serial", **rules
    )
    trace = trace_of(rows, more=1)
    wanted = simulated(cluster, trace, (0, 1))
    live = live_engine(cluster)
    tokens: list[LiveRequest] = []

    def pull(prompt: LiveRequest, count: int) -> None:
        request = LiveRequest(
            1, prompt.prompt_tokens, outputs[prompt], Kind.TOKEN, source=prompt, schedule=[]
        )
        tokens.append(request)
        live.submit(request, prompt.last_token_ns)

    outputs = {}
    prompts = []
    for arrival, p, o in zip(wanted.arrival_ns.tolist(), trace.prompt_tokens, trace.output_tokens):
        prompt = LiveRequest(0, int(p), 1, Kind.PROMPT, on_token=pull)
        outputs[prompt] = int(o) - 1
        prompts.append(prompt)
        live.step_to(arrival)
        live.submit(prompt, arrival)
    play(live)
    assert [p.first_token_ns for p in prompts] == wanted.prompt_end_ns.tolist()
    assert sorted(t.last_token_ns for t in tokens) == sorted(wanted.finish_ns.tolist())
    assert sorted(t.cache_ns for t in tokens) == sorted(wanted.transfer_end_ns.tolist())
    assert all(len(t.schedule) == t.output_tokens for t in tokens)
    assert idle(live)


@pytest.mark.parametrize("rules", RULES)
def test_a_cache_from_another_process_pays_this_machines_nic(rules):
    live = live_engine(tiny_cluster("M", tiny_profile(nic_tokens_per_ms=0.5), **rules))
    here = []
    requests = [
        LiveRequest(0, 100, 3, Kind.TOKEN, schedule=[], on_cache=lambda r: here.append(live.now_ns))
        for _ in range(2)
    ]
    for request in requests:
        live.submit(request, 0)
    play(live)
    assert here == [400 * MS, 400 * MS]  # 200 ms each, shared
    assert requests[0].schedule == [410 * MS, 420 * MS, 430 * MS]
    assert idle(live)


@pytest.mark.parametrize("rules", RULES)
def test_a_prompts_cache_is_held_until_it_is_released(rules):
    live = live_engine(tiny_cluster("M", tiny_profile(capacity=200), **rules))
    first = LiveRequest(0, 150, 1, Kind.PROMPT)
    second = LiveRequest(0, 150, 2)
    live.submit(first, 0)
    live.submit(second, 1)
    live.step_to(1_000 * MS)
    assert first.finished and not second.tokens and live.machines[0].used == 151
    live.cancel(first, 1_000 * MS)
    play(live)
    assert second.last_token_ns >= 1_150 * MS and second.finished
    assert idle(live)


@settings(max_examples=80)
@given(
    SIZES,
    st.lists(st.integers(0, 900), min_size=12, max_size=12),
    st.lists(st.sampled_from(list(Kind)), min_size=12, max_size=12),
    st.sampled_from(RULES),
    st.sampled_from([150, 400, 5_000]),
)
def test_requests_may_leave_at_any_time(rows, leave_ms, kinds, rules, capacity):
    live = live_engine(tiny_cluster("M", tiny_profile(capacity=capacity, nic_tokens_per_ms=0.5), **rules))
    requests = []
    events = []
    for (arrival, prompt, output), leave, kind in zip(sorted(rows), leave_ms, kinds):
        request = LiveRequest(0, prompt, 1 if kind is Kind.PROMPT else output, kind)
        requests.append(request)
        events += [(arrival * MS, 0, len(events), request), ((arrival + leave) * MS, 1, len(events), request)]
    for at, what, _, request in sorted(events, key=lambda e: e[:3]):
        live.step_to(at)
        (live.cancel if what else live.submit)(request, at)
    play(live)
    assert idle(live)
    assert all(r.cancelled for r in requests)


def test_two_machines_share_the_nic_of_the_prompt_machine():
    live = live_engine(tiny_cluster("MMM", tiny_profile(nic_tokens_per_ms=1.0)))
    prompts = [LiveRequest(0, 100, 1, Kind.PROMPT) for _ in range(2)]
    for prompt in prompts:
        live.submit(prompt, 0)
    live.step_to(300 * MS)
    pulls = [LiveRequest(1 + k, 100, 2, Kind.TOKEN, source=prompts[k]) for k in range(2)]
    for request in pulls:
        live.submit(request, 300 * MS)
    play(live)
    assert [r.cache_ns for r in pulls] == [500 * MS] * 2
    assert idle(live)


def test_what_is_gone_is_computed_again():
    live = live_engine(tiny_cluster("MM", tiny_profile()))
    prompt = LiveRequest(0, 100, 1, Kind.PROMPT)
    live.submit(prompt, 0)
    live.step_to(200 * MS)
    live.cancel(prompt, 200 * MS)
    late = LiveRequest(1, 100, 2, Kind.TOKEN, source=prompt)
    live.submit(late, 300 * MS)
    play(live)
    assert (late.first_token_ns, late.last_token_ns, late.cache_ns) == (400 * MS, 410 * MS, -1)
    assert idle(live)


@pytest.mark.parametrize("rules", RULES)
def test_a_pulled_request_leaves_with_its_own_iteration_not_with_one_of_its_prompts_machine(rules):
    live = live_engine(tiny_cluster("MM", tiny_profile(), **rules))
    prompt = LiveRequest(0, 100, 1, Kind.PROMPT)
    live.submit(prompt, 0)
    live.step_to(200 * MS)
    pull, stays = LiveRequest(1, 100, 90, Kind.TOKEN, source=prompt), LiveRequest(1, 50, 90)
    other = LiveRequest(0, 7, 90)  # its tokens come between those of the other machine
    for request in (pull, stays, other):
        live.submit(request, 200 * MS)
    live.step_to(505 * MS)
    before = pull.tokens
    assert before and other.tokens
    live.cancel(pull, 505 * MS)
    play(live)
    assert pull.tokens <= before + 1 and stays.finished and other.finished
    assert idle(live)
