"""The router sees what the simulator sees: the same views, observations and decisions."""

import numpy as np
import pytest

from splitgym import policy, schedulers
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, MachineGroup, TransferConfig
from splitgym.evaluation import parse
from splitgym.observation import Observer
from splitgym.policy.golden import VIEW_FIELDS
from splitgym.router.state import Flight, Phase, RouterState
from splitgym.sim.simpy_engine import SimpyEngine
from splitgym.types import Pool
from tests.bundles import scorer_bundle
from tests.tiny import MS, tiny_cluster


class Told(SimpyEngine):
    """The specification engine, telling a `RouterState` what happens, and what it decides by itself."""

    def __init__(self, cluster, routing, again, observer):
        super().__init__(cluster, None, schedulers.sizing("static"))
        self.by, self.again = routing, again  # each remembers recent rates of its own
        self.observer, self.router_observer = observer, Observer(observer.max_machines)

    def start(self, trace):
        self.reset(trace)
        config = self.cluster.config
        self.state = RouterState(self.cluster, lambda: self.now_ns, config.confine, infer=False)
        self.flights = {}
        self.observer.reset(self.view)
        self.router_observer.reset(self.state.refresh())
        for each in (self.by, self.again):
            each.reset(self.view, 0)
        self.compared = 0

    def run(self):
        while (decision := self.run_until_decision()) is not None:
            request = decision.request
            if request.attempt == 0:
                self.state.arrived(request.prompt_tokens)
            mine, theirs = self.view, self.state.refresh()
            for name in VIEW_FIELDS:
                a, b = getattr(mine, name), getattr(theirs, name)
                if name == "iteration_end_ns":  # a fraction of a nanosecond is carried by the machine
                    a, b = np.maximum(a, mine.clock), np.maximum(b, mine.clock)
                assert np.array_equal(a, b), (name, a, b, decision)
            ours = self.observer.observe(mine, request)
            seen = self.router_observer.observe(theirs, request)
            for key in ours:
                assert np.allclose(ours[key], seen[key], atol=1e-6), key
            pair = self.by.route(mine, request)
            assert pair == self.again.route(theirs, request)
            self.apply(pair)
            self.compared += 1

    def _route(self, job, prompt_machine, token_machine):
        flight = Flight(job.prompt_tokens, prompt_machine, token_machine)
        self.flights[job] = flight
        self.state.place(flight)
        super()._route(job, prompt_machine, token_machine)

    def _run(self, machine, iteration):
        duration = super()._run(machine, iteration)
        prompts = [self.flights[job] for job in iteration.prompts]
        self.state.iteration_began(machine.index, prompts, self.now_ns + duration)
        return duration

    def _end(self, machine, iteration):
        self.state.iteration_ended(machine.index)
        super()._end(machine, iteration)

    def _end_decodes(self, machine, decodes):
        for job in decodes:
            self.state.tokens(self.flights[job], 1)
        super()._end_decodes(machine, decodes)

    def _end_prompt(self, machine, job):
        self.state.prompt_ended(self.flights[job])
        super()._end_prompt(machine, job)
        if not job.split and job.output_tokens > 1:
            self.state.cache_arrived(self.flights[job])

    def _start_transfer(self, job):
        super()._start_transfer(job)
        self.state.transfer_started(self.flights[job])

    def _leave_network(self, transfer):
        super()._leave_network(transfer)
        self.state.transfer_ended(self.flights[transfer.job])

    def _shipped(self, job):
        self.state.cache_arrived(self.flights[job])
        super()._shipped(job)

    def _finish(self, job):
        super()._finish(job)
        self.state.finished(self.flights[job], job.output_tokens)


def cluster(confine=False, **transfer):
    return Cluster.resolve(
        ClusterConfig(
            machines=(
                MachineGroup(count=2, pool="prompt"),
                MachineGroup(machine="a100-80gb", count=2, pool="token"),
                MachineGroup(count=1, pool="mixed"),
            ),
            confine=confine,
            transfer=TransferConfig(**transfer),
        )
    )


@pytest.mark.parametrize("who", ["splitwise", "index", "network"])
@pytest.mark.parametrize("confine", [False, True])
def test_replay_gives_the_same_views_observations_and_decisions(tmp_path, who, confine):
    """DESIGN section 6: one workload through the simulator and through the router's state."""
    where = cluster(confine)
    folder = scorer_bundle(tmp_path / "b")
    by = [policy.load(folder) if who == "network" else schedulers.routing(who) for _ in range(2)]
    rate = 6.0 if who == "network" else 10.0  # an untrained network overloads one machine
    trace = parse(f"poisson:azure-code-synth@{rate}", duration_s=20.0, warmup_s=1.0).build(0, 5)
    engine = Told(where, *by, Observer(5))
    engine.start(trace)
    engine.run()
    assert engine.compared == len(trace)
    end = engine.state.refresh()
    for name in ("prompt_tokens", "running", "inbound", "transfers", "kv_used_tokens"):
        assert not getattr(end, name).any(), f"{name} is zero when all are served"


def test_what_is_inferred_follows_the_batching_rule():
    """1 ms a prompt token, 10 ms a token: prompts queue, are batched, and end by the router's own account."""
    now = [0]
    where = tiny_cluster("PT", max_prompt_tokens=100, overlap_min_tokens=10_000)
    state = RouterState(where, lambda: now[0])
    flights = [Flight(60, 0, 1) for _ in range(3)]
    for flight in flights:
        state.arrived(60)
        state.place(flight)
    view = state.refresh()
    assert view.iteration_prompts[0] == 1 and view.prompt_requests[0] == 2, (
        "the first runs alone: 60 + 60 > 100"
    )
    assert view.iteration_end_ns[0] == 60 * MS and view.prompt_queue_ns[0] == 120 * MS
    assert view.prompt_tokens[0] == 180 and view.inbound[1] == 3 and view.pool[0] == Pool.PROMPT
    now[0] = 61 * MS
    state.prompt_ended(flights[0])
    view = state.refresh()
    assert view.iteration_prompts[0] == 1 and view.iteration_end_ns[0] == 121 * MS
    assert view.transfers.tolist() == [1, 1] and flights[0].phase is Phase.SHIPPING
    assert view.kv_used_tokens.tolist() == [122, 61]
    now[0] = 70 * MS
    state.tokens(flights[0], 1)
    view = state.refresh()
    assert view.running[1] == 1 and view.inbound[1] == 2 and view.transfers.tolist() == [0, 0]
    assert view.iteration_end_ns[1] == 80 * MS, "the next token is foreseen"
    state.prompt_ended(flights[2])  # out of order: it must have started
    assert flights[2].phase is Phase.SHIPPING
    for flight in flights:
        state.finished(flight, 5)
    view = state.refresh()
    for name in ("prompt_tokens", "prompt_queue_ns", "running", "inbound", "transfers", "kv_used_tokens"):
        assert not getattr(view, name).any(), name
    assert view.counters.tolist() == [3, 180, 3, 15]


def test_an_unsplit_request_stays_where_it_is():
    now = [0]
    state = RouterState(tiny_cluster("MM"), lambda: now[0])
    flight = Flight(50, 1, 1)
    state.place(flight)
    assert state.refresh().iteration_prompts.tolist() == [0, 1]
    now[0] = 50 * MS
    state.tokens(flight, 1)
    view = state.refresh()
    assert view.running.tolist() == [0, 1] and view.running_context_tokens[1] == 51
    assert view.kv_used_tokens[1] == 51 and view.prompt_share[1] > 0
    state.tokens(flight, 3)
    assert state.refresh().running_context_tokens[1] == 54
    state.dropped(flight)
    state.dropped(flight)
    state.tokens(flight, 1)
    view = state.refresh()
    assert not view.kv_used_tokens.any() and not view.running.any() and view.counters[2] == 0


def test_servers_that_are_down_and_reports():
    state = RouterState(tiny_cluster("PT", confine=True), lambda: 7)
    view = state.refresh()
    assert view.prompt_allowed.tolist() == [1, 0] and view.token_allowed.tolist() == [0, 1]
    state.set_up(0, False)
    view = state.refresh()
    assert view.prompt_allowed.tolist() == [0, 1], "confinement is lifted where it would leave nobody"
    state.set_home(1, Pool.MIXED)
    state.reported(1, 0.25)
    state.set_capacity(0, 500)
    view = state.refresh()
    assert view.home_pool[1] == Pool.MIXED and view.kv_capacity_tokens[0] == 500
    assert view.kv_used_tokens[1] == round(0.25 * view.kv_capacity_tokens[1])
    flight = Flight(10, 1, 1)
    state.place(flight)
    before = int(state.refresh().kv_used_tokens[1])
    state.tokens(flight, 5)
    assert state.refresh().kv_used_tokens[1] == before + 4, "the counter goes on from the report"
