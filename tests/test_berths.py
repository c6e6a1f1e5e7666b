"""The tree of transfers' next stages, beside a sorted list."""

from hypothesis import given
from hypothesis import strategies as st

from splitgym import schedulers, trace
from splitgym.cluster import Cluster
from splitgym.config import ClusterConfig, parse_machines
from splitgym.sim import make_engine
from splitgym.sim.compiled import berths, state

MOST = 40
"""Transfers at once: more than the berths that a simulation begins with."""

CLUSTER = Cluster.resolve(ClusterConfig(machines=parse_machines("h100-80gb:1P1T")))
ENGINE = make_engine(CLUSTER, schedulers.routing("splitwise"), schedulers.sizing("static"), "compiled")
TRACE = trace.poisson(trace.load("azure-conv-synth"), 10.0, 20.0, seed=0)


@given(
    st.lists(
        st.tuples(st.integers(0, MOST - 1), st.one_of(st.none(), st.integers(0, 6), st.integers(0, 10**12))),
        min_size=1,
        max_size=300,
    )
)
def test_the_first_stage_is_the_one_a_sorted_list_has(plans):
    """Transfers are planned, planned anew and taken away; few times, so that many are the same."""
    ENGINE.reset(TRACE)
    run = ENGINE._started
    sim, jobs, dues = run.sim, run._kept["jobs"], run._kept["dues"]
    for slot in range(MOST):
        # Requests in another order than slots, and than berths.
        jobs[slot]["slot"], jobs[slot]["request"], jobs[slot]["berth"] = slot, slot * 7 % MOST, state.NONE
    planned: dict[int, int] = {}
    most = 0
    for slot, time in plans:
        if time is None:
            berths.leave_berth(sim, jobs[slot])
            planned.pop(slot, None)
        else:
            berths.plan_due(sim, jobs[slot], time)
            planned[slot] = time
        most = max(most, len(planned))
        assert sim["used_berths"] == most
        first = dues[1]
        if not planned:
            assert first["time"] >= state.FAR
            continue
        expected = min((at, int(jobs[s]["request"])) for s, at in planned.items())
        assert (int(first["time"]), int(first["key"]) >> state.BERTH_BITS) == expected
        berth = run._kept["berths"][int(first["key"]) & state.BERTH_MASK]
        assert jobs[berth["slot"]]["request"] == expected[1]
