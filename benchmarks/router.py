"""What a router costs: latency added to one request at a time, requests/s of one core, decision times.

    python benchmarks/router.py [--json FILE] [--split] \\
        [--vllm-router EXECUTABLE] [--production-stack EXECUTABLE] [--floor]

In front of a server that costs next to nothing (benchmarks/http_load.py; two of them for split requests, one
for each phase): directly, through `splitgym route`, and through other routers where they are installed, each
in an environment of its own (`pip install vllm-router` is the Rust one; vllm-project/production-stack's
installs from its source, on Python 3.12), and with --floor the least that a proxy in Python can cost
(benchmarks/http_floor.py). A router has one core to itself, load and servers share the other.
Requests per second are given by the clock, and by the CPU time of the router's process, which other work
on the machine disturbs less.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from harness import Report, arguments

from splitgym.router.config import RouterConfig, ServerConfig
from splitgym.router.parts import Parts
from splitgym.router.state import Flight

HERE = Path(__file__).resolve().parent
LOAD = [sys.executable, str(HERE / "http_load.py")]
CORES = sorted(os.sched_getaffinity(0))
ROUTER_CORE, LOAD_CORE = {CORES[-1]}, {CORES[0]}
START_S = 90.0
TICKS = os.sysconf("SC_CLK_TCK")

Command = Callable[[int, list[str], Path], list[str]]
"""(port, servers' URLs, folder to write to) -> what to start."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(command: list[str], port: int, cores: set[int], log: Path) -> Iterator[int]:
    """A process that answers on a port; its id."""
    quiet = {**os.environ, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1", "SENTRY_DSN": ""}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=quiet)
    os.sched_setaffinity(process.pid, cores)
    try:
        until = time.monotonic() + START_S
        while not answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    """Does a completion come back?"""
    data = json.dumps({"model": "stub", "prompt": "x", "max_tokens": 1}).encode()
    url, headers = f"http://127.0.0.1:{port}/v1/completions", {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=2) as found:
            return bool(found.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def splitgym(*shape: str) -> Command:
    """Our router, with its log."""

    def command(port: int, urls: list[str], folder: Path) -> list[str]:
        servers = [{"name": f"s{i}", "url": u, "pool": p} for i, (u, p) in enumerate(zip(urls, shape))]
        config = {
            "servers": servers,
            "listen": {"port": port},
            "admin": {"port": free_port()},
            "log": {"path": str(folder / "decisions.jsonl")},
        }
        file = folder / "router.yaml"
        file.write_text(yaml.safe_dump(config))
        return [sys.executable, "-m", "splitgym.cli", "route", "--config", str(file)]

    return command


def rust(executable: str, split: bool) -> Command:
    """vllm-router from PyPI."""

    def command(port: int, urls: list[str], folder: Path) -> list[str]:
        words = [executable, "--port", str(port), "--policy", "round_robin", "--log-level", "warning"]
        words += ["--prometheus-port", str(free_port())]
        if split:
            words += ["--vllm-pd-disaggregation", "--kv-connector", "nixl"]
            return [*words, "--prefill", urls[0], "--decode", urls[1]]
        return [*words, "--worker-urls", *urls]

    return command


def stack(executable: str, split: bool) -> Command:
    """production-stack's router."""

    def command(port: int, urls: list[str], folder: Path) -> list[str]:
        logic = "disaggregated_prefill_orchestrated" if split else "roundrobin"
        words = [executable, "--port", str(port), "--service-discovery", "static", "--routing-logic", logic]
        words += ["--static-backends", ",".join(urls), "--static-models", ",".join("stub" for _ in urls)]
        words += ["--log-level", "warning"]
        if split:
            words += ["--static-model-labels", "prefill,decode"]
            words += ["--prefill-model-labels", "prefill", "--decode-model-labels", "decode"]
        return words

    return command


def floor(port: int, urls: list[str], folder: Path) -> list[str]:
    """The smallest proxy that there is in Python."""
    return [sys.executable, str(HERE / "http_floor.py"), str(port), urls[0].rsplit(":", 1)[1]]


@dataclass
class Shot:
    """One burst of load."""

    p50_ms: float
    p99_ms: float
    requests_per_s: float
    requests_per_cpu_s: float


def cpu_s(pid: int) -> float:
    """CPU time of a process with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def shoot(port: int, pid: int | None, concurrency: int, seconds: float, stream: bool) -> Shot:
    """Load a port from another process."""
    words = [*LOAD, "load", str(port), "--concurrency", str(concurrency), "--seconds", str(seconds)]
    process = subprocess.Popen([*words, *(["--stream"] if stream else [])], stdout=subprocess.PIPE)
    os.sched_setaffinity(process.pid, LOAD_CORE)
    before = cpu_s(pid) if pid else 0.0
    out, _ = process.communicate()
    used = cpu_s(pid) - before if pid else 0.0
    found = json.loads(out)
    count = found["requests"]
    if found["failed"] or not count:
        raise SystemExit(f"port {port}: {found['failed']} requests failed")
    per_cpu_s = count / used if used else float("nan")
    return Shot(found["p50_s"] * 1e3, found["p99_s"] * 1e3, count / seconds, per_cpu_s)


def through(report: Report, name: str, port: int, pid: int, direct: int, args: argparse.Namespace) -> None:
    """All cases of one router."""
    for stream in (False, True):
        kind = "streamed" if stream else "whole"
        added50, added99 = [], []
        for _ in range(args.repeats):
            base = shoot(direct, None, 1, args.seconds, stream)
            shot = shoot(port, pid, 1, args.seconds, stream)
            added50.append(shot.p50_ms - base.p50_ms)
            added99.append(shot.p99_ms - base.p99_ms)
        report.add(f"{name}, {kind}, 1 at a time: added p50", added50, "ms")
        report.add(f"{name}, {kind}, 1 at a time: added p99", added99, "ms")
        for concurrency in (16, 128):
            shots = [shoot(port, pid, concurrency, args.seconds, stream) for _ in range(args.repeats)]
            label = f"{name}, {kind}, {concurrency} at a time"
            report.add(f"{label}: by the clock", [s.requests_per_s for s in shots], "requests/s")
            report.add(f"{label}: of one core", [s.requests_per_cpu_s for s in shots], "requests/CPU s")


def decisions(report: Report, policies: list[str], repeats: int) -> None:
    """How long a decision takes in the router, its view included, on servers with work."""
    for policy in policies:
        for count in (8, 64):
            pools = ["prompt" if i % 2 else "token" for i in range(count)]
            servers = tuple(
                ServerConfig(name=f"s{i}", url=f"http://10.0.{i // 200}.{1 + i % 200}:8000", pool=pool)
                for i, pool in enumerate(pools)
            )
            parts = Parts(RouterConfig(servers, policy={"routing": policy}))  # type: ignore[arg-type]
            rng = np.random.default_rng(0)
            flights: list[Flight] = []
            p50, p99 = [], []
            for _ in range(repeats):
                times = [one_decision(parts, rng, flights) for _ in range(2000)][200:]
                p50.append(float(np.percentile(times, 50)))
                p99.append(float(np.percentile(times, 99)))
            report.add(f"decision by {policy}, {count} servers: p50", p50, "us")
            report.add(f"decision by {policy}, {count} servers: p99", p99, "us")


def one_decision(parts: Parts, rng: np.random.Generator, flights: list[Flight]) -> float:
    """Decide, place, let an old request end; microseconds of the decision."""
    tokens = int(rng.integers(50, 4000))
    start = time.perf_counter_ns()
    choice = parts.decisions.route(tokens, 200, 0)
    took_us = (time.perf_counter_ns() - start) / 1e3
    assert choice is not None
    flight = Flight(tokens, *choice.pair)
    parts.state.place(flight)
    flights.append(flight)
    parts.state.tokens(flights[int(rng.integers(len(flights)))], 1)
    if len(flights) > 4 * len(parts.servers):
        parts.state.finished(flights.pop(0), 100)
    return took_us


def main() -> None:
    """Measure."""
    parser = arguments(__doc__ or "")
    parser.set_defaults(repeats=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each burst of load")
    parser.add_argument("--vllm-router", metavar="EXECUTABLE", help="the Rust router, from PyPI")
    parser.add_argument("--production-stack", metavar="EXECUTABLE", help="production-stack's vllm-router")
    parser.add_argument(
        "--floor", action="store_true", help="the smallest proxy in Python too (no split requests)"
    )
    parser.add_argument("--split", action="store_true", help="prompt and token on different servers")
    parser.add_argument("--policy", action="append", help="whose decisions are timed; repeatable")
    parser.add_argument("--only-decisions", action="store_true")
    args = parser.parse_args()
    report = Report("router" + (", split requests" if args.split else ""))
    decisions(report, args.policy or ["splitwise", "index", "pretrained:routing"], args.repeats)
    cases = {"splitgym": splitgym(*(("prompt", "token") if args.split else ("mixed",)))}
    if args.vllm_router:
        cases["vllm-router"] = rust(args.vllm_router, args.split)
    if args.production_stack:
        cases["production-stack"] = stack(args.production_stack, args.split)
    if args.floor and not args.split:
        cases["floor"] = floor
    if not args.only_decisions:
        compare(report, cases, args)
    report.finish(args.json)


def compare(report: Report, cases: dict[str, Command], args: argparse.Namespace) -> None:
    """Each router in its turn, in front of the same servers."""
    with tempfile.TemporaryDirectory() as name:
        folder, one, two = Path(name), free_port(), free_port()
        with (
            started([*LOAD, "serve", str(one)], one, LOAD_CORE, folder / "one.log"),
            started([*LOAD, "serve", str(two)], two, LOAD_CORE, folder / "two.log"),
        ):
            urls = [f"http://127.0.0.1:{port}" for port in ((one, two) if args.split else (one,))]
            for label, command in cases.items():
                port = free_port()
                words = command(port, urls, folder)
                with started(words, port, ROUTER_CORE, folder / "router.log") as pid:
                    through(report, label, port, pid, one, args)


if __name__ == "__main__":
    main()
