"""What an observation holds, as data: documentation tables, Gymnasium spaces and the schema hash.

Every feature is bounded, and none grows with the size of the cluster. `squash(x, c)` below stands for
x / (x + c): 0 at 0, 1/2 at c, 1 at infinity. Only rational arithmetic is used, so an observation has the same
bits on every machine.
"""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

SCHEMA_VERSION = 2


class Feature(NamedTuple):
    """One number of an observation."""

    name: str
    low: float
    high: float
    meaning: str


def _unit(name: str, meaning: str) -> Feature:
    return Feature(name, 0.0, 1.0, meaning)


MACHINE_FEATURES: tuple[Feature, ...] = (
    # Hardware
    _unit("prompt_speed", "full prompt batch: time on the reference machine over time here, squash(x, 1)"),
    _unit("token_speed", "32 decodes of 1024 tokens: time on the reference over time here, squash(x, 1)"),
    _unit("memory", "tokens of KV cache that fit, squash(x, 131072)"),
    _unit("bandwidth", "tokens of KV cache shipped in a second, squash(x, 16384)"),
    # Pools
    _unit("home_prompt", "1 if the home pool is prompt"),
    _unit("home_token", "1 if the home pool is token"),
    _unit("home_mixed", "1 if the home pool is mixed"),
    _unit("now_prompt", "1 if the pool by present work is prompt"),
    _unit("now_token", "1 if the pool by present work is token"),
    _unit("now_mixed", "1 if the pool by present work is mixed"),
    _unit("available", "1 if up and not draining for a switch"),
    _unit("prompt_allowed", "1 if it may be chosen for a prompt"),
    _unit("token_allowed", "1 if it may be chosen for the token phase"),
    # Prompt work
    _unit("prompt_requests", "prompts queued, squash(x, 4)"),
    _unit("prompt_tokens", "prompt tokens pending, squash(x, 4096)"),
    _unit("wait", "predicted wait of a prompt that joins the queue, squash(x, 1 s)"),
    _unit("wait_gap", "that wait above the least wait of an allowed machine, squash(x, 0.25 s)"),
    _unit("prompt_share", "recent share of time given to prompts, at most 0.8"),
    # Token work
    _unit("running", "requests decoding, squash(x, 32)"),
    _unit("running_context", "their context tokens, squash(x, 32768)"),
    _unit("inbound", "requests whose KV cache is on its way here, or still to be computed, squash(x, 8)"),
    _unit("inbound_prompt_tokens", "their prompt tokens, squash(x, 8192)"),
    _unit("transfers", "KV transfers in flight at the NIC, squash(x, 4)"),
    # Memory
    _unit("kv_used", "share of the KV memory in use, clipped to [0, 1]"),
    _unit(
        "kv_promised",
        "in use, inbound prompts and expected outputs over the KV memory, clipped to [0, 2], halved",
    ),
    # Predictions for this request here (at a control tick: for a request of the recent mean length)
    _unit("ttft", "predicted TTFT over its SLO, squash(x, 1)"),
    _unit("ttft_hinge", "how close that is to a miss: 4 (x - 0.8), clipped to [0, 1]"),
    _unit("ttft_gap", "that TTFT / SLO above the least of an allowed machine, squash(x, 0.25)"),
    _unit("tbt_split", "predicted TBT over its SLO when the prompt is computed elsewhere, squash(x, 1)"),
    _unit("tbt_split_hinge", "6 (x - 0.85), clipped to [0, 1]"),
    _unit("tbt_split_gap", "above the least of an allowed machine, squash(x, 0.25)"),
    _unit("tbt_same", "predicted TBT over its SLO when the prompt is computed here too, squash(x, 1)"),
    _unit("tbt_same_hinge", "6 (x - 0.85), clipped to [0, 1]"),
    _unit(
        "iteration", "predicted token iteration with this request in the batch over the TBT SLO, squash(x, 1)"
    ),
    _unit("own_prompt_time", "this prompt's time here over its time on the reference machine, squash(x, 1)"),
    _unit("harm_prompt", "harm to the decodes here by this prompt (INDEX term w5), squash(x, 1)"),
    _unit("harm_token", "harm to the decodes here by this decode (INDEX term w7), squash(x, 1)"),
)

CLUSTER_FEATURES: tuple[Feature, ...] = (
    # Load: work that arrives over what all available machines could do, recent (5 s) and longer (60 s)
    _unit("prompt_load_5s", "arriving prompt tokens over the cluster's prompt speed, last 5 s, squash(x, 1)"),
    _unit("prompt_load_60s", "the same, last 60 s"),
    _unit("output_load_5s", "arrivals x mean output over the cluster's token speed, last 5 s, squash(x, 1)"),
    _unit("output_load_60s", "the same, last 60 s"),
    _unit("burst", "arrival rate of the last 5 s over that of the last 60 s, squash(x, 1); 1/2 before any"),
    _unit("completion_ratio", "completions over arrivals, last 60 s, squash(x, 1); 1/2 before any"),
    _unit("mean_prompt", "mean prompt tokens of the last 60 s, squash(x, 1024)"),
    _unit("mean_output", "mean output tokens of completed requests, squash(x, 256)"),
    # Pools
    _unit("available", "share of machines that are available"),
    _unit("home_prompt", "share of machines whose home pool is prompt"),
    _unit("home_token", "share of machines whose home pool is token"),
    _unit("now_mixed", "share of machines that work for both phases now"),
    # Prompt work, over machines that may take a prompt
    _unit("wait_mean", "mean predicted wait, squash(x, 1 s)"),
    _unit("wait_min", "least predicted wait, squash(x, 1 s)"),
    _unit("wait_max", "largest predicted wait, squash(x, 1 s)"),
    _unit("prompt_share_mean", "mean recent share of time given to prompts"),
    _unit("ttft_miss", "share of them where this request's predicted TTFT misses its SLO"),
    # Token work, over machines that may take a token phase
    _unit("running_mean", "mean requests decoding, squash(x, 32)"),
    _unit("inbound_mean", "mean inbound requests, squash(x, 8)"),
    _unit("kv_used_mean", "mean share of KV memory in use"),
    _unit("kv_used_max", "largest share of KV memory in use"),
    _unit("token_share_mean", "mean recent share of time given to prompts"),
    _unit("tbt_miss", "share of them where this request's predicted TBT (split) misses its SLO"),
    # Time
    _unit("since_last", "time since the previous observation, squash(x, 1 s)"),
    # Forecast: 2 x the mean of the last 20 s less that of 60 s: the load in 20 s if it goes on so
    _unit("prompt_forecast", "forecast of the prompt load, at least 0, squash(x, 1)"),
    _unit("output_forecast", "forecast of the output load, at least 0, squash(x, 1)"),
    _unit("prompt_need_20s", "prompt load over prompt and output load, last 20 s; 1/2 before any arrival"),
    _unit("prompt_need_forecast", "the same of the forecast loads; 1/2 where both are 0"),
)

REQUEST_FEATURES: tuple[Feature, ...] = (
    _unit("present", "1 when a request is to be routed, 0 at a control tick (the other features are then 0)"),
    _unit("prompt_tokens", "prompt tokens, squash(x, 2048)"),
    _unit("prompt_tokens_short", "prompt tokens, squash(x, 256)"),
    _unit("prompt_batch", "prompt tokens over the prompt batch limit, clipped to [0, 2], halved"),
    _unit("prompt_relative", "prompt tokens over the recent mean, squash(x, 1)"),
    _unit("reference_ttft", "TTFT alone on the reference machine, squash(x, 1 s)"),
    _unit("max_tokens_known", "1 if the client gave max_tokens"),
    _unit("max_tokens", "max_tokens, squash(x, 512); 0 if unknown"),
    _unit(
        "expected_output",
        "output tokens: the mean, at most max_tokens; the truth if the oracle is on; squash(x, 256)",
    ),
    _unit("retry", "1 if a failure made the request start again"),
)


PRIOR_LIMIT = 100.0
"""Costs of a prior are clipped here; the index's terms seldom add up to a tenth of it."""

PRIOR_FEATURES: tuple[Feature, ...] = (
    Feature("prompt_cost", 0.0, PRIOR_LIMIT, "A(p) of the prior above its least of an allowed machine"),
    Feature("split_cost", 0.0, PRIOR_LIMIT, "B(t) for p != t above the least B of an allowed machine"),
    Feature("same_cost", 0.0, PRIOR_LIMIT, "B(t) for p = t above the least B of an allowed machine"),
)
"""With the option `prior`: what an index or residual scheduler would pay (`splitgym.observation.prior`)."""


def observation_space(max_machines: int, prior: bool = False) -> spaces.Dict:
    """The Gymnasium space for clusters of up to `max_machines` machines.

    Args:
        max_machines: M.
        prior: with the costs of a prior, `PRIOR_FEATURES`.
    """

    def box(features: tuple[Feature, ...], rows: int | None = None) -> spaces.Box:
        low = np.array([f.low for f in features], np.float32)
        high = np.array([f.high for f in features], np.float32)
        if rows is not None:
            low, high = np.tile(low, (rows, 1)), np.tile(high, (rows, 1))
        return spaces.Box(low, high, dtype=np.float32)

    found: dict[str, spaces.Space[Any]] = {
        "machines": box(MACHINE_FEATURES, max_machines),
        "cluster": box(CLUSTER_FEATURES),
        "request": box(REQUEST_FEATURES),
        "mask": spaces.Box(0.0, 1.0, (max_machines,), np.float32),
    }
    if prior:
        found["prior"] = box(PRIOR_FEATURES, max_machines)
    return spaces.Dict(found)


def schema(prior: bool = False) -> dict[str, Any]:
    """The observation's layout as plain data: what a policy bundle stores and checks."""

    def table(features: tuple[Feature, ...]) -> list[dict[str, Any]]:
        return [f._asdict() for f in features]

    costs = {"prior": table(PRIOR_FEATURES)} if prior else {}  # (M, 3)
    return {
        "version": SCHEMA_VERSION,
        "dtype": "float32",
        "machines": table(MACHINE_FEATURES),  # (M, F)
        "cluster": table(CLUSTER_FEATURES),  # (G,)
        "request": table(REQUEST_FEATURES),  # (R,)
        "mask": "(M,) 1 for a machine, 0 for padding",
        **costs,
    }


def schema_hash(prior: bool = False) -> str:
    """sha256 of the schema. Two observations with one hash mean the same thing in every place."""
    text = json.dumps(schema(prior), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def feature_table() -> str:
    """The documentation table (Markdown): Num, Observation, Min, Max, Meaning."""
    lines = []
    for key, features in (
        ("machines", MACHINE_FEATURES),
        ("cluster", CLUSTER_FEATURES),
        ("request", REQUEST_FEATURES),
        ("prior", PRIOR_FEATURES),
    ):
        lines += [f"`{key}`", "", "| Num | Observation | Min | Max | Meaning |", "|---|---|---|---|---|"]
        lines += [
            f"| {i} | {f.name} | {f.low:g} | {f.high:g} | {f.meaning} |" for i, f in enumerate(features)
        ]
        lines.append("")
    return "\n".join(lines)
