"""Golden vectors: states, and what the policy decided there when it was exported.

They are made-up states of a real cluster, so that exporting needs no simulation. Loading replays them: a
policy that decides otherwise here (a changed file, another BLAS, an edited scheduler) is refused.

    observation vector   {"kind": "route" | "resize", "observation": {...}, "prompt_allowed": [...],
                          "token_allowed": [...] (or "sizes_allowed"), "scores": [...], "decision": ...}
    view vector          {"kind": ..., "view": {field: [...]}, "request": {...} | null, "decision": ...}

A view vector of a resizing may hold "before", clock and counters at the scheduler's reset: what came since is
the load that it tracks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from splitgym.cluster import Cluster
from splitgym.errors import PolicyError
from splitgym.schedulers import SizingScheduler
from splitgym.types import NS_PER_S, UNKNOWN, Pool, RequestInfo
from splitgym.view import ClusterView

SCORE_TOLERANCE = 1e-3
"""Scores must agree to this: other BLAS libraries sum in another order."""
MARGIN = 1e-2
"""Vectors whose two best scores lie closer are not kept: rounding could decide them."""

VIEW_FIELDS = (
    "available",
    "prompt_allowed",
    "token_allowed",
    "home_pool",
    "pool",
    "prompt_requests",
    "prompt_tokens",
    "prompt_queue_ns",
    "iteration_end_ns",
    "iteration_prompts",
    "prompt_share",
    "prompt_share_at_ns",
    "running",
    "running_context_tokens",
    "running_prompt_tokens",
    "inbound",
    "inbound_prompt_tokens",
    "transfers",
    "kv_used_tokens",
    "clock",
    "mean_output",
    "counters",
)
"""Fields of a view that change; the others are the cluster's."""
BEFORE_FIELDS = ("clock", "counters")
"""What a sizing scheduler counts from at its reset."""


def made_up_states(cluster: Cluster, count: int, seed: int = 0) -> Iterator[tuple[ClusterView, RequestInfo]]:
    """Busy states of a cluster, one view refilled, and a request to route in each.

    Args:
        cluster: whose machines.
        count: states.
        seed: same seed, same states.
    """
    random = np.random.default_rng(seed)
    view = cluster.view()
    m = cluster.num_machines
    now = 100 * NS_PER_S
    for number in range(count):
        load = random.uniform(0.05, 1.0)
        now += int(random.integers(NS_PER_S))
        view.clock[0] = now
        view.pool[:] = np.where(random.random(m) < 0.2, int(Pool.MIXED), view.home_pool)
        view.prompt_requests[:] = random.poisson(2 * load, m)
        view.iteration_prompts[:] = random.random(m) < load
        own = random.integers(200, 2500, m)
        view.prompt_tokens[:] = (view.prompt_requests + view.iteration_prompts) * own
        view.prompt_queue_ns[:] = view.prompt_requests * own * 100_000
        view.iteration_end_ns[:] = now + random.integers(1, 200_000_000, m) * view.iteration_prompts
        view.prompt_share[:] = random.random(m) * load
        view.prompt_share_at_ns[:] = now - random.integers(0, NS_PER_S, m)
        view.running[:] = random.poisson(20 * load, m)
        view.running_prompt_tokens[:] = view.running * random.integers(300, 1800, m)
        view.running_context_tokens[:] = view.running_prompt_tokens + view.running * random.integers(1, 90, m)
        view.inbound[:] = random.poisson(2 * load, m)
        view.inbound_prompt_tokens[:] = view.inbound * random.integers(300, 1800, m)
        view.transfers[:] = random.poisson(load, m)
        held = view.running_context_tokens + view.inbound_prompt_tokens // 2
        view.kv_used_tokens[:] = np.minimum(held, view.kv_capacity_tokens)
        view.mean_output[:] = (random.uniform(900, 9000), 30.0)
        view.counters[:] = (40 * number, 45_000 * number, 38 * number, 4_000 * number)
        known = random.random() < 0.5
        yield (
            view,
            RequestInfo(
                request_id=number,
                arrival_ns=now,
                prompt_tokens=int(random.integers(10, 4000)),
                max_tokens=int(random.integers(1, 800)) if known else UNKNOWN,
                oracle_output_tokens=UNKNOWN,
                attempt=0,
            ),
        )


def dump_view(view: ClusterView) -> dict[str, list[float]]:
    """The changing fields of a view as lists."""
    return {name: getattr(view, name).tolist() for name in VIEW_FIELDS}


def fill_view(view: ClusterView, data: dict[str, Any]) -> None:
    """Undo `dump_view` on a view of the same cluster.

    Raises:
        PolicyError: a field is missing, unknown, or of another length.
    """
    if not isinstance(data, dict) or set(data) != set(VIEW_FIELDS):
        raise PolicyError("a golden view holds other fields than this splitgym's")
    for name, values in data.items():
        array = getattr(view, name)
        try:
            given = np.asarray(values, array.dtype)
        except (TypeError, ValueError, OverflowError):
            raise PolicyError(f"a golden view's {name} holds no numbers") from None
        if given.shape != array.shape:
            raise PolicyError(f"a golden view's {name} has shape {given.shape}, expected {array.shape}")
        array[:] = given


def after(scheduler: SizingScheduler, view: ClusterView, before: dict[str, list[float]]) -> int:
    """What a sizing scheduler decides on a view, reset when clock and counters were those of `before`.

    Raises:
        PolicyError: other fields.
    """
    if not isinstance(before, dict) or set(before) != set(BEFORE_FIELDS):
        raise PolicyError(f"a golden vector's before holds other fields than {', '.join(BEFORE_FIELDS)}")
    now = {name: getattr(view, name).copy() for name in BEFORE_FIELDS}
    for name, values in before.items():
        getattr(view, name)[:] = values
    scheduler.reset(view, 0)
    for name, array in now.items():
        getattr(view, name)[:] = array
    return int(scheduler.resize(view))


def dump_request(request: RequestInfo | None) -> dict[str, int] | None:
    """A request as plain data."""
    return None if request is None else {name: int(value) for name, value in request._asdict().items()}


def read_request(data: Any) -> RequestInfo:
    """Undo `dump_request`.

    Raises:
        PolicyError: other fields.
    """
    try:
        return RequestInfo(**{name: int(value) for name, value in data.items()})
    except (AttributeError, TypeError, ValueError):
        raise PolicyError("a golden request holds other fields than this splitgym's") from None


def short(array: Any) -> list[Any]:
    """A float32 array as nested lists of the shortest numbers that read back to the same bits."""
    if np.ndim(array) > 1:
        return [short(row) for row in array]
    return [float(str(np.float32(x))) for x in array]
