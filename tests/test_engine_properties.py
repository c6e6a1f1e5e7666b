"""Conservation, on random clusters, workloads, faults and decisions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_cluster, tiny_profile, tiny_trace

from splitgym.config import Fault
from splitgym.sim.outcomes import NEVER
from splitgym.sim.rules import Rules
from splitgym.sim.simpy_engine import SimpyEngine, simpy_engine
from splitgym.types import DecisionKind, EventKind

requests = st.lists(
    st.tuples(st.integers(0, 3_000), st.integers(1, 120), st.integers(1, 40)), min_size=1, max_size=40
).map(lambda rows: sorted((t / 1000, p, o) for t, p, o in rows))

faults = st.lists(
    st.builds(Fault, machine=st.integers(0, 1), at_s=st.floats(0, 4), duration_s=st.floats(0.01, 3)),
    max_size=3,
).map(tuple)


@st.composite
def clusters(draw, ageing=("decodes", "all")):
    pools = draw(st.sampled_from(["PT", "MM", "PTM", "PPTT", "PTTM", "MMM"]))
    profile = tiny_profile(
        capacity=draw(st.integers(176, 600)),
        nic_tokens_per_ms=draw(st.sampled_from([0.2, 1.0, 10.0])),
        context_us=draw(st.sampled_from([0.0, 0.0007, 3.3])),
        token_ms=draw(st.sampled_from([1.0, 10.0])),
    )
    return tiny_cluster(
        pools,
        profile,
        mode=draw(st.sampled_from(["serial", "layerwise"])),
        overlap_min_tokens=draw(st.sampled_from([0, 50, 512])),
        shared=draw(st.booleans()),
        max_prompt_tokens=draw(st.sampled_from([1, 64, 2048])),
        max_tasks=draw(st.sampled_from([1, 4, 512])),
        max_passed_over=draw(st.integers(1, 4)),
        ageing=draw(st.sampled_from(ageing)),
        kv_reserve=draw(st.sampled_from(["at_decode", "at_transfer"])),
        confine=draw(st.booleans()),
        switch_delay_s=draw(st.sampled_from([0.0, 0.3])),
        control_interval_s=draw(st.sampled_from([0.1, 1.0])),
        min_pool_machines=draw(st.integers(0, 1)),
        faults=draw(faults),
        vllm=draw(
            st.none()
            | st.fixed_dictionaries(
                {
                    "max_num_batched_tokens": st.sampled_from([8, 64, 2048]),
                    "max_num_seqs": st.sampled_from([1, 4, 256]),
                    "block_size": st.sampled_from([1, 7, 16]),
                }
            )
        ),
    )


def drive(engine: SimpyEngine, seed: int, check=lambda engine: None) -> None:
    """Answer every decision at random among what is allowed; `check` after each."""
    rng = np.random.default_rng(seed)
    view = engine.view
    while (decision := engine.run_until_decision()) is not None:
        view = engine.view
        if decision.kind is DecisionKind.RESIZE:
            engine.apply(int(rng.integers(-1, 2)))
        else:
            engine.apply(
                (
                    int(rng.choice(np.flatnonzero(view.prompt_allowed))),
                    int(rng.choice(np.flatnonzero(view.token_allowed))),
                )
            )
        check(engine)


def check_memory(engine: Rules) -> None:
    for machine in engine.machines:
        assert 0 <= machine.used <= machine.reserved <= machine.capacity


@settings(max_examples=150)
@given(cluster=clusters(), rows=requests, seed=st.integers(0, 2**32 - 1))
def test_conservation(cluster, rows, seed):
    engine = simpy_engine(cluster, record=True)
    engine.reset(tiny_trace(*rows), seed)
    drive(engine, seed, check_memory)
    outcomes = engine.outcomes()

    # Every request completes exactly once.
    assert sorted(outcomes.finish_order) == list(range(len(rows)))
    assert (outcomes.finish_ns >= outcomes.first_token_ns).all()
    assert (outcomes.first_token_ns > outcomes.arrival_ns).all()

    # Token counts add up: what machines computed is what clients got and what was lost on the way.
    assert outcomes.generated_tokens.sum() == outcomes.output_tokens.sum() + outcomes.lost_tokens.sum()
    undisturbed = (outcomes.attempts == 1) & (outcomes.preemptions == 0)
    prompted = (outcomes.prompt_tokens * outcomes.prompts_computed).sum()
    assert outcomes.prompted_tokens.sum() >= prompted
    if cluster.config.batching.rule == "splitwise" or undisturbed.all():  # vLLM's computes outputs again too
        assert outcomes.prompted_tokens.sum() == prompted
    assert (outcomes.prompts_computed[undisturbed] == 1).all()
    assert (outcomes.lost_tokens[undisturbed] == 0).all()

    # Time never runs backwards, for the cluster and for each request.
    times = [event[0] for event in engine.events]
    assert times == sorted(times)
    shipped = outcomes.prompt_machine != outcomes.token_machine
    shipped &= outcomes.output_tokens > 1
    assert (outcomes.transfer_start_ns[~shipped] == NEVER).all()
    assert (outcomes.transfer_end_ns[shipped] >= outcomes.prompt_end_ns[shipped]).all()
    assert (outcomes.decode_start_ns[shipped] >= outcomes.transfer_end_ns[shipped]).all()
    assert (outcomes.prompt_start_ns >= outcomes.arrival_ns).all()

    # Nothing is left behind.
    for machine in engine.machines:
        assert (machine.used, machine.reserved, machine.context, machine.batch_context) == (0, 0, 0, 0)
        assert machine.promised == 0
        assert (machine.queued_ns, machine.queued_prompt_tokens, machine.inbound_prompt_tokens) == (0, 0, 0)
        assert not machine.has_prompt_work and not machine.has_token_work and not machine.outbound
        assert not getattr(machine, "line", None)
    assert all(not flights for flights in engine.network.in_flight)
    assert (outcomes.busy_ns <= outcomes.up_ns).all()
    assert (outcomes.prompt_busy_ns <= outcomes.busy_ns).all()


@settings(max_examples=60)
@given(cluster=clusters(), rows=requests, seed=st.integers(0, 2**32 - 1), stop=st.integers(0, 60))
def test_what_has_not_completed_is_still_running(cluster, rows, seed, stop):
    engine = simpy_engine(cluster)
    engine.reset(tiny_trace(*rows), seed)
    rng = np.random.default_rng(seed)
    for _ in range(stop):
        decision = engine.run_until_decision()
        if decision is None:
            break
        view = engine.view
        engine.apply(
            0
            if decision.kind is DecisionKind.RESIZE
            else (
                int(rng.choice(np.flatnonzero(view.prompt_allowed))),
                int(np.flatnonzero(view.token_allowed)[0]),
            )
        )
    outcomes = engine.outcomes()
    arrived = int(engine.view.counters[0])
    known = set(outcomes.finish_order)
    for machine in engine.machines:
        running = [*machine.inbound, *machine.output_waiters, *machine.batch]
        ids = {job.request_id for job in running}
        assert not ids & known  # in one place only, and not completed
        known |= ids
    elsewhere = [*engine._held, *engine._restarting, *([engine._asked] if engine._asked else [])]
    assert not known & {job.request_id for job in elsewhere}
    known |= {job.request_id for job in elsewhere}
    assert known == set(range(arrived))


@settings(max_examples=40)
@given(cluster=clusters(), rows=requests, seed=st.integers(0, 2**32 - 1))
def test_one_seed_one_result(cluster, rows, seed):
    events = []
    for _ in range(2):
        engine = simpy_engine(cluster, record=True)
        engine.reset(tiny_trace(*rows), seed)
        drive(engine, seed)
        events.append(engine.events)
    assert events[0] == events[1]


@settings(max_examples=60)
@given(cluster=clusters(), rows=requests, seed=st.integers(0, 2**32 - 1))
def test_events_of_one_time_come_in_the_order_of_their_kind(cluster, rows, seed):
    """Unless an event of that time caused a later one of a smaller kind: then the cause came just before."""
    engine = simpy_engine(cluster, record=True)
    engine.reset(tiny_trace(*rows), seed)
    drive(engine, seed)
    fixed = (EventKind.FAILURE, EventKind.RECOVERY, EventKind.CONTROL, EventKind.ARRIVAL)
    planned = [(t, kind) for t, kind, _, _ in engine.events if kind in fixed]
    assert planned == sorted(planned)


@settings(max_examples=80)
@given(
    rows=st.lists(st.tuples(st.integers(0, 800), st.integers(1, 120)), min_size=2, max_size=25).map(sorted),
    outputs=st.lists(st.integers(101, 200), min_size=25, max_size=25),
    pools=st.sampled_from(["PT", "MM", "PPTT", "PTM"]),
    mode=st.sampled_from(["serial", "layerwise"]),
    vllm=st.sampled_from([None, {}]),
    seed=st.integers(0, 2**32 - 1),
)
def test_views_do_not_know_the_true_output_length(rows, outputs, pools, mode, vllm, seed):
    """Two runs that differ only in lengths of outputs still to come show the same views.

    All outputs are over 100 tokens of 10 ms, so that none completes within the second that is watched.
    (Memory is ample: waiting for memory is an event that a router sees.)
    """
    seen = []
    for lengths in ([101] * len(rows), outputs[: len(rows)]):
        profile = tiny_profile(capacity=50_000, nic_tokens_per_ms=50)
        engine = simpy_engine(tiny_cluster(pools, profile, mode=mode, overlap_min_tokens=50, vllm=vllm))
        trace = tiny_trace(*[(t / 1000, p, o) for (t, p), o in zip(rows, lengths, strict=True)])
        engine.reset(trace)
        rng = np.random.default_rng(seed)
        views = []
        while (decision := engine.run_until_decision()) is not None and decision.now_ns < 1_000_000_000:
            view = engine.view
            views.append(
                [
                    np.array(a).tolist()
                    for name, a in view._asdict().items()
                    if name not in ("tables", "rules")
                ]
            )
            views.append(decision.request)
            if decision.kind is DecisionKind.RESIZE:
                engine.apply(0)
            else:
                engine.apply((int(rng.integers(len(pools))), int(rng.integers(len(pools)))))
        seen.append(views)
    assert seen[0] == seen[1]


def test_view_matches_a_recount(monkeypatch):
    """The view is kept up to date by what changed; at every decision it equals a count from scratch."""
    profile = tiny_profile(capacity=400)
    cluster = tiny_cluster(
        "PTTM", profile, mode="layerwise", overlap_min_tokens=30, faults=(Fault(1, 0.7, 0.5),)
    )
    rng = np.random.default_rng(3)
    rows = sorted(zip(rng.uniform(0, 2, 60), rng.integers(1, 100, 60), rng.integers(1, 30, 60), strict=True))
    engine = simpy_engine(cluster)
    engine.reset(tiny_trace(*rows))

    def recount(engine):
        engine.visibility.refresh(engine.now_ns)
        view = engine.view
        for m in engine.machines:
            decoding = [*m.batch, *m.output_waiters]
            assert view.running[m.index] == len(decoding)
            assert view.running_context_tokens[m.index] == sum(
                j.prompt_tokens + j.generated for j in decoding
            )
            assert view.running_prompt_tokens[m.index] == sum(j.prompt_tokens for j in decoding)
            assert view.inbound_prompt_tokens[m.index] == sum(j.prompt_tokens for j in m.inbound)
            in_iteration = m.iteration.prompt_tokens if m.iteration else 0
            assert view.prompt_tokens[m.index] == in_iteration + sum(j.prompt_tokens for j in m.prompt_queue)
            held = sum(j.prompt_tokens + j.generated for j in decoding)
            held += sum(j.prompt_tokens + 1 for j in m.outbound)
            held += sum(j.prompt_tokens + 1 for j in m.inbound if j.transfer and j.token_machine == m.index)
            running = m.iteration.prompts if m.iteration else []
            held += sum(j.prompt_tokens + 1 for j in running if j.phase.name == "PROMPT")
            assert view.kv_used_tokens[m.index] == held
            assert view.transfers[m.index] == len(engine.network.in_flight[m.index])

    drive(engine, 3, recount)
    assert len(engine.outcomes().finish_order) == 60


def test_memory_errors_are_caught():
    """The guards of the memory count themselves work."""
    engine = simpy_engine(tiny_cluster("MM"))
    engine.reset(tiny_trace((0.0, 10, 2)))
    machine = engine.machines[0]
    with pytest.raises(AssertionError):
        machine.reserve(machine.capacity + 1)
    machine.reserved = 0
    with pytest.raises(AssertionError):
        machine.release(0, 1)
