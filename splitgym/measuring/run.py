"""A whole measurement: look at the servers, run the plan within its limits, keep what was measured."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from splitgym.errors import ProfileError
from splitgym.measuring.client import About, Client
from splitgym.measuring.plan import FINER, Limits, Plan, make_plan
from splitgym.measuring.store import Store
from splitgym.measuring.sweep import Sweep
from splitgym.profile.link import Run, fit_link
from splitgym.profile.measured import Samples

Tell = Callable[[int, int, str], None]
"""Called with (runs done, runs in all, what is next)."""
EXTRA = 3
"""A step that is not steady after its repeats is run again, up to so many times as often."""
_IDLE_S = 5.0


@dataclass(frozen=True)
class Servers:
    """Where to measure.

    Args:
        url: a server that computes both phases.
        prompt_url, token_url: a pair for KV transfers; both or none.
        api_key: bearer token of all.
        model: what they serve; empty takes the first that they name.
    """

    url: str
    prompt_url: str | None = None
    token_url: str | None = None
    api_key: str | None = None
    model: str = ""

    def __post_init__(self) -> None:
        if (self.prompt_url is None) != (self.token_url is None):
            raise ProfileError("a transfer needs two servers: give --prompt-url and --token-url, or neither")
        for url in (self.url, self.prompt_url, self.token_url):
            if url is not None and not url.startswith(("http://", "https://")):
                raise ProfileError(f"{url!r} is no server's address: write http://HOST:PORT")


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    about: About
    plan: Plan
    store: Store | None
    """None where only the plan was asked for."""
    stopped: str
    """Why not everything was measured; empty where it was."""
    requests: int
    seconds: float
    kv_bytes_per_token: float | None
    """As the token server's connector counted."""

    def samples(self) -> Samples:
        """For the fit."""
        assert self.store is not None
        prompt = [((int(n), int(b)), t) for n, b, t in self.store.samples("prompt")]
        token = [((int(b), c), t) for b, c, t in self.store.samples("token")]
        mixed = [((int(n), int(b), c), t) for n, b, c, t in self.store.samples("mixed")]
        return Samples(prompt, _grouped(token), mixed, transfers(self.store))


def transfers(store: Store) -> list[Run]:
    """The transfers of a file of measurements."""
    return [(int(n), first, iteration, read) for n, first, iteration, read in store.samples("transfer")]


def _grouped(token: list[tuple[tuple[int, float], float]]) -> list[tuple[tuple[int, float], float]]:
    """Runs of one step differ by a token or two in their context: give them its mean, as one point."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for (batch, context), t in token:
        found.setdefault((batch, round(context / batch / 64)), []).append((context, t))
    means = {key: sum(context for context, _ in runs) / len(runs) for key, runs in found.items()}
    return [((key[0], means[key]), t) for key, runs in found.items() for _, t in runs]


async def measure(
    servers: Servers,
    limits: Limits,
    path: Path | None,
    *,
    fresh: bool = False,
    shared: bool = False,
    tell: Tell = lambda done, total, what: None,
    look: Callable[[About], object] = lambda about: None,
) -> Outcome:
    """Measure, or (without a path) only plan.

    Args:
        servers: where.
        limits: how much may be asked.
        path: of the measurements; what is there already is not measured again.
        fresh: begin the measurements anew.
        shared: measure although others use the servers.
        tell: progress.
        look: called with what the server says of itself, before anything is measured; may raise.

    Raises:
        ProfileError: a server that refuses or is busy, or a file that does not fit; what was measured stays.
    """
    headers = {"Authorization": f"Bearer {servers.api_key}"} if servers.api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=max(60.0, limits.seconds))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        client = Client(session, servers.url)
        about = await client.about()
        client.model = servers.model or about.model
        look(about)
        pair = None
        if servers.prompt_url is not None and servers.token_url is not None:
            pair = (Client(session, servers.prompt_url), Client(session, servers.token_url))
            for one in pair:
                await one.about()
        plan = make_plan(
            limits,
            max_model_len=about.max_model_len,
            capacity_tokens=about.capacity_tokens,
            transfer=pair is not None,
        )
        if path is None:
            return Outcome(about, plan, None, "", 0, 0.0, None)
        if not shared:
            await _wait_idle([client, *(pair or ())])
        header = {"url": servers.url, "model": client.model, "version": about.version}
        store = Store.open(path, header, fresh=fresh)
        sweep = Sweep(client, plan, pair)
        began = time.monotonic()
        moved_before = await pair[1].bytes_moved() if pair else 0.0
        stopped, moved_tokens = await _run(sweep, store, tell)
        moved = await pair[1].bytes_moved() - moved_before if pair else 0.0
        per_token = moved / moved_tokens if moved and moved_tokens else None
        return Outcome(about, plan, store, stopped, sweep.sent, time.monotonic() - began, per_token)


async def _run(sweep: Sweep, store: Store, tell: Tell) -> tuple[str, int]:
    """(why it stopped early, tokens whose cache was shipped)."""
    plan, limits = sweep.plan, sweep.plan.limits
    total = len(plan.steps) * limits.repeats
    done = sum(min(store.done(step), limits.repeats) for step in plan.steps)
    until = time.monotonic() + limits.seconds
    await sweep.warm_up()
    moved = 64 if sweep.pair else 0
    for repeat in range(EXTRA * limits.repeats):
        for step in plan.steps:
            if store.done(step) > repeat or (repeat >= limits.repeats and store.steady(step)):
                continue
            done, total = done + 1, total + (repeat >= limits.repeats)  # an unsteady step's run comes on top
            tell(done, total, step.name)
            if sweep.sent + plan.requests(step) > limits.requests:
                return f"{limits.requests} requests were sent", moved
            if time.monotonic() > until:
                return f"{limits.seconds:g} s are over", moved
            samples, facts = await sweep.run(step)
            store.add(step, samples, **facts)
            moved += step.tokens if step.kind == "transfer" else 0
            await asyncio.sleep(limits.pause_s)
    moved += await _finer_link(sweep, store, tell, until, total)
    tell(total, total, "")
    return "", moved


async def _finer_link(sweep: Sweep, store: Store, tell: Tell, until: float, total: int) -> int:
    """Transfer again, the shortest and the longest, until the bandwidth is known well or limits are near.

    Returns the tokens whose cache was shipped.
    """
    steps = sorted((s for s in sweep.plan.steps if s.kind == "transfer"), key=lambda step: step.tokens)
    moved, limits = 0, sweep.plan.limits
    if len(steps) < 2:
        return moved
    for round_ in range(FINER * limits.repeats):
        link = fit_link(transfers(store))
        if link is not None and link.known:
            break
        for step in (steps[0], steps[-1]):
            tell(total - 1, total, f"{step.name}, again: {round_ + 1}")
            if sweep.sent + sweep.plan.requests(step) > limits.requests or time.monotonic() > until:
                return moved
            samples, facts = await sweep.run(step)
            store.add(step, samples, **facts)
            moved += step.tokens
            await asyncio.sleep(limits.pause_s)
    return moved


async def _wait_idle(clients: list[Client]) -> None:
    until = time.monotonic() + _IDLE_S
    for client in clients:
        while busy := await client.busy():
            if time.monotonic() > until:
                raise ProfileError(
                    f"{client.url}: works at {busy} requests of others, who would be disturbed and disturb: "
                    "measure when it is idle, or --shared measures nevertheless"
                )
            await asyncio.sleep(0.2)
