"""Decision logs for tests, written as a router would."""

import json
from pathlib import Path
from typing import Any

from splitgym.config import ClusterConfig, MachineGroup, make, to_mapping
from splitgym.evaluation import parse
from splitgym.router.records import Attempt, Record

SERVERS = ("p0", "p1", "t0", "t1")
CONFIG = make(
    ClusterConfig,
    model="llama2-70b",
    machines=[MachineGroup(pool=pool) for pool in ("prompt", "prompt", "token", "token")],
    batching={"rule": "vllm"},
    transfer={"mode": "serial"},
)
"""What a router with these servers assumes of them."""


def start(
    cluster: Any = None, began_unix_s: float = 1000.0, servers: tuple[str, ...] = SERVERS
) -> dict[str, Any]:
    """A `start` line."""
    return {
        "v": 1,
        "event": "start",
        "unix_s": began_unix_s,
        "began_unix_s": began_unix_s,
        "servers": [{"name": name, "pool": "mixed", "machine": "h100-80gb"} for name in servers],
        "policy": "index",
        "confine": False,
        **({"cluster": to_mapping(cluster)} if cluster is not None else {}),
    }


def request(
    number: int, arrival_s: float, pair: tuple[str, str] = ("p0", "t0"), **fields: Any
) -> dict[str, Any]:
    """A request's line; made by the router's own record, so that the two cannot drift apart."""
    attempt = Attempt(number, *pair, "policy", "", fields.pop("decided_s", 0.001), 50.0)
    attempt.prompt_s = fields.pop("prompt_s", 0.1) if pair[0] != pair[1] else None
    record = Record(
        request_id=f"r{number}",
        endpoint="/v1/completions",
        stream=True,
        unix_s=1000.0 + arrival_s,
        arrival_s=arrival_s,
        estimated_prompt_tokens=90,
        max_tokens=20,
        prompt_tokens=100,
        output_tokens=20,
        status=200,
        outcome="ok",
        first_byte_s=0.2,
        end_s=1.0,
        attempts=[attempt],
    )
    for name, value in fields.items():
        setattr(record, name, value)
    return record.as_dict()


def write(path: Path, *lines: dict[str, Any] | bytes) -> Path:
    """A log of lines in the order of their ends; bytes are written as they are."""
    with path.open("wb") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    return path


def busy_log(path: Path, cluster: Any, rate_per_s: float, duration_s: float, seed: int = 0) -> Path:
    """A log of Poisson arrivals with the sizes of `azure-code-synth`; only these two mean something."""
    trace = parse(f"poisson:azure-code-synth@{rate_per_s}", duration_s=duration_s, warmup_s=0.0, part="all")
    rows = trace.build(seed)
    columns = (rows.arrival_s.round(6), rows.prompt_tokens, rows.output_tokens)
    lines = [
        request(i, a, prompt_tokens=p, output_tokens=o, max_tokens=None)
        for i, (a, p, o) in enumerate(zip(*(column.tolist() for column in columns)))
    ]
    return write(path, start(cluster), *lines)
