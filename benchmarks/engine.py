"""What a simulated engine sustains: tokens/s of one core, streams in real time, and how late tokens come.

    python benchmarks/engine.py [--streams 256]

The engines run in this process, the clients in another one. CPU time is this process's; a token is late by
the wall time between its place in the simulation and the moment at which it is handed to its stream.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import uvloop

from splitgym.router.engine import EngineOptions, running
from splitgym.router.engine.server import EngineServer

PROMPT_TOKENS = 200


@dataclass
class Run:
    """Of one setting."""

    engines: int
    streams: int
    scale: float
    tokens: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    late_s: list[float] = field(default_factory=list)

    def line(self) -> str:
        per_core = f"{self.tokens / self.cpu_s:,.0f} tokens/s a core"
        p50, p99, most = np.percentile(np.array(self.late_s) * 1e3, [50, 99, 100])
        return (
            f"{self.engines:2d} engines, {self.streams:5d} streams, scale {self.scale:g}: "
            f"{self.tokens / self.wall_s:8.0f} tokens/s at {100 * self.cpu_s / self.wall_s:3.0f} % of a core "
            f"({per_core}), late p50 {p50:.2f} p99 {p99:.2f} max {most:.1f} ms"
        )


async def one_stream(host: str, port: int, tokens: int, number: int) -> int:
    """Chunks of one streamed completion, read without parsing."""
    reader, writer = await asyncio.open_connection(host, port)
    fields = {"max_tokens": tokens, "stream": True, "ignore_eos": True}
    body = json.dumps({"prompt": [number + 1] * PROMPT_TOKENS, **fields}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    count = 0
    while data := await reader.read(1 << 16):
        count += data.count(b"data: ")
    writer.close()
    return count - 1


async def clients(ports: list[int], streams: int, tokens: int) -> None:
    """The other process: all streams at once."""
    counts = await asyncio.gather(
        *(one_stream("127.0.0.1", ports[n % len(ports)], tokens, n) for n in range(streams))
    )
    print(sum(counts))


async def measure(run: Run, tokens: int, profile: str) -> Run:
    """Start engines, let the other process load them."""
    options = EngineOptions(profile=profile, engines=run.engines, port=0, time_scale=run.scale)
    plain = EngineServer._token

    def noted(server, call, part, request, count):
        run.late_s.append(server._time.wall_s(server._time.now_ns() - request.last_token_ns))
        plain(server, call, part, request, count)

    EngineServer._token = noted
    try:
        async with running(options) as engines:
            ports = ",".join(str(host.port) for host in engines.hosts)
            begin = time.monotonic(), time.process_time()
            command = [__file__, "--ports", ports, "--streams", str(run.streams), "--tokens", str(tokens)]
            other = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await other.communicate()
            run.tokens = int(out)
            run.wall_s = time.monotonic() - begin[0]
            run.cpu_s = time.process_time() - begin[1]
    finally:
        EngineServer._token = plain
    assert run.tokens == run.streams * tokens == len(run.late_s), (run.tokens, len(run.late_s))
    return run


def main() -> None:
    """Measure, or be the other process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="llama2-70b/h100-80gb")
    parser.add_argument("--ports", default="")
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    if args.ports:
        uvloop.run(clients([int(p) for p in args.ports.split(",")], args.streams, args.tokens))
        return
    sizes = [(1, 1), (1, 64), (1, 256), (4, 512), (8, 1024)] if not args.streams else [(4, args.streams)]
    for engines, streams in sizes:
        print(uvloop.run(measure(Run(engines, streams, 1.0), args.tokens, args.profile)).line(), flush=True)
    # Faster than it can: what a core does at most.
    print(uvloop.run(measure(Run(4, 512, 100.0), args.tokens, args.profile)).line())


if __name__ == "__main__":
    main()
