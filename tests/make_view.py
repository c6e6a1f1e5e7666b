"""Views of made-up clusters for tests of schedulers: no profile data, no engine."""

import numpy as np
from hypothesis import strategies as st

from splitgym.profile.tables import ProfileTables
from splitgym.types import UNKNOWN, Pool, RequestInfo
from splitgym.view import ClusterRules, ClusterView, empty_view

MS = 1_000_000
TICKS_PER_MS = MS << 16


def make_tables(speeds=(1.0, 1.0, 2.0)) -> ProfileTables:
    """Row 0 is the reference; a machine type of speed s takes 1/s of its times."""
    knots = np.array([1, 512, 2048, 8192], np.int64)
    times_ms = np.array([40, 100, 320, 1500], np.float64)
    batch = np.arange(65)
    base_ms = 30 + 0.5 * batch
    rows = len(speeds)
    return ProfileTables(
        prompt_tokens=np.tile(knots, (rows, 1)),
        prompt_ns=np.array([(times_ms * MS / s).astype(np.int64) for s in speeds]),
        prompt_knots=np.full(rows, len(knots), np.int64),
        token_base=np.array([(base_ms * TICKS_PER_MS / s).astype(np.int64) for s in speeds]),
        token_slope=np.array([np.full(65, int(0.0005 * TICKS_PER_MS / s), np.int64) for s in speeds]),
        mixed_factor=np.full(rows, 1.1),
    )


def make_view(pools, rows=None, capacity=100_000, tables=None) -> ClusterView:
    """An idle cluster: `pools` is a text such as "PPT" or "PTM", `rows` the machine types."""
    m = len(pools)
    home = np.array([{"P": Pool.PROMPT, "T": Pool.TOKEN, "M": Pool.MIXED}[c] for c in pools], np.int64)
    return empty_view(
        machine_row=np.array(rows or [1] * m, np.int64),
        kv_capacity_tokens=np.full(m, capacity, np.int64),
        link_bytes_per_s=np.full(m, 200_000_000_000, np.int64),
        transfer_constant_ns=np.full(m, 5 * MS, np.int64),
        home_pool=home,
        tables=tables or make_tables(),
        rules=ClusterRules(
            max_prompt_tokens=2048,
            max_tasks=512,
            kv_bytes_per_token=4_000_000,
            overlap_min_tokens=512,
            ttft_slo=3.0,
            tbt_slo=1.5,
        ),
    )


def make_request(prompt=1000, max_tokens=UNKNOWN, oracle=UNKNOWN, request_id=0) -> RequestInfo:
    """A request that arrives at time 0."""
    return RequestInfo(request_id, 0, prompt, max_tokens, oracle, 0)


requests = st.builds(
    make_request,
    prompt=st.integers(1, 20_000),
    max_tokens=st.one_of(st.just(UNKNOWN), st.integers(1, 4000)),
    request_id=st.integers(0, 1000),
)


@st.composite
def views(draw, max_machines=8, coarse=False) -> ClusterView:
    """A busy cluster in any state; `coarse` draws few distinct values, so that costs tie."""
    m = draw(st.integers(1, max_machines))
    view = make_view(
        "".join(draw(st.lists(st.sampled_from("PTM"), min_size=m, max_size=m))),
        rows=[1] * m if coarse else draw(st.lists(st.integers(1, 2), min_size=m, max_size=m)),
        capacity=draw(st.sampled_from([4_000, 100_000])),
    )

    def fill(name: str, high: int, low: int = 0) -> None:
        values = st.sampled_from([low, high]) if coarse else st.integers(low, high)
        array = getattr(view, name)
        array[:] = draw(st.lists(values, min_size=m, max_size=m))

    view.clock[0] = 3_000 * MS
    fill("prompt_allowed", 1)
    fill("token_allowed", 1)
    view.prompt_allowed[draw(st.integers(0, m - 1))] = 1
    view.token_allowed[draw(st.integers(0, m - 1))] = 1
    fill("pool", 2)
    fill("prompt_requests", 5)
    fill("iteration_prompts", 1)
    fill("prompt_tokens", 9_000)
    fill("prompt_queue_ns", 2_000 * MS)
    fill("iteration_end_ns", 3_400 * MS)
    fill("running", 80)
    fill("running_prompt_tokens", 40_000)
    view.running_prompt_tokens[view.running == 0] = 0
    view.running_context_tokens[:] = view.running_prompt_tokens + 20 * view.running
    fill("inbound", 6)
    fill("inbound_prompt_tokens", 6_000)
    fill("kv_used_tokens", 90_000)
    view.prompt_share[:] = np.array(draw(st.lists(st.integers(0, 8), min_size=m, max_size=m))) / 8
    view.mean_output[:] = draw(st.sampled_from([(4500.0, 30.0), (60.0, 40.0), (20000.0, 50.0)]))
    return view
