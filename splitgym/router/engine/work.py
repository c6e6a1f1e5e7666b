"""What a simulated engine does for a request: submits what makes its tokens, pulls and holds caches."""

import asyncio
import time
from functools import partial
from typing import Any

from splitgym.router.engine.bodies import internal_error
from splitgym.router.engine.caches import Caches, SideChannel, Ticket
from splitgym.router.engine.call import Call, Model, Part
from splitgym.router.engine.clock import RealTime
from splitgym.router.engine.faults import Faults
from splitgym.router.engine.metrics import EngineMetrics
from splitgym.router.engine.objects import kv_transfer_params
from splitgym.router.engine.options import EngineOptions
from splitgym.sim.live_request import Kind, LiveRequest


class Work:
    """One engine without its server.

    Args:
        index: its machine in the live engine.
        options: of the process.
        time: moves the live engine.
        caches: that it holds for others.
        side: the way to the caches of others.
        model: what it serves.
        kv_bytes_per_token: size of a cache.
    """

    def __init__(
        self,
        index: int,
        options: EngineOptions,
        time_: RealTime,
        caches: Caches,
        side: SideChannel,
        model: Model,
        kv_bytes_per_token: int,
    ):
        self.index = index
        self.options = options
        self.caches = caches
        self.model = model
        self.faults = Faults(options.seed + index)
        self.created = int(time.time())
        machine = time_.live.machines[index]
        self.metrics = EngineMetrics(machine, time_, model.name, model.max_model_len)
        self.recorded: list[LiveRequest] = []
        self._role = options.role(index)
        self._time = time_
        self._side = side
        self._kv_bytes_per_token = kv_bytes_per_token
        self._block_size = getattr(options.batching, "block_size", 16)
        self._blocks_given = 0
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for what still talks to other processes."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def begin(self, call: Call) -> None:
        """Submit what makes the tokens; a cache is asked for first."""
        params = call.kv_transfer_params or {}
        ticket = Ticket.read(params) if self._role in ("both", "token") else None
        source: LiveRequest | None = None
        pulls = ticket is not None and await self._find(ticket, len(call.parts[0].prompt))
        if pulls and ticket is not None:
            holder = self._side.here(ticket)
            source = holder.take(ticket.request_id) if holder is not None else None
        keeps = bool(params.get("do_remote_decode")) and self._role in ("both", "prompt")
        for part in call.parts:
            request = LiveRequest(
                self.index,
                len(part.prompt),
                part.choice.answer.length,
                on_token=partial(self._token, call, part),
                schedule=[] if self.options.record else None,
            )
            if pulls and part is call.parts[0]:
                assert ticket is not None
                request.kind, request.source = Kind.TOKEN, source
                self._watch(call, ticket, request)
            elif keeps and part.choice.answer.length == 1:
                request.kind = Kind.PROMPT
            part.request = request
            self.metrics.started(len(call.parts), call.max_tokens)
            self._time.submit(request)
            if self.options.record:
                self.recorded.append(request)

    async def _find(self, ticket: Ticket, prompt_tokens: int) -> bool:
        """Is the cache there? Otherwise, as `kv_load_failure_policy` says."""
        holder = self._side.here(ticket)
        if holder is None:
            tokens = await self._side.claim(ticket)
        else:
            held = holder.claim(ticket.request_id)
            tokens = held.prompt_tokens if held is not None else None
        if tokens is not None and tokens >= prompt_tokens:
            return True
        self.metrics.failed_transfers += 1
        if self.options.kv_load_failure_policy == "fail":
            raise internal_error()
        return False

    def _watch(self, call: Call, ticket: Ticket, request: LiveRequest) -> None:
        """Count the cache when it arrives; keep another process's lease until then, and free it after."""
        arrived = asyncio.Event()
        size = request.prompt_tokens * self._kv_bytes_per_token

        def here(request: LiveRequest) -> None:
            self.metrics.transferred(request, size)
            arrived.set()

        request.on_cache = here
        if request.source is None:
            call.over.append(arrived.set)
            task = asyncio.get_running_loop().create_task(self._keep(ticket, arrived))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, ticket: Ticket, arrived: asyncio.Event) -> None:
        while not arrived.is_set():
            try:
                await asyncio.wait_for(arrived.wait(), self.caches.lease_s / 6)
            except TimeoutError:
                await self._side.claim(ticket)
        if not await self._side.free(ticket):
            self.metrics.failed_notifications += 1

    def _token(self, call: Call, part: Part, request: LiveRequest, tokens: int) -> None:
        self.metrics.token(request, part.last_ns)
        part.last_ns = request.last_token_ns
        call.put(part, tokens)

    def hold(self, call: Call) -> dict[str, Any] | None:
        """Caches wait to be pulled from now on; what the token engine is to be told (of the first one)."""
        first: dict[str, Any] | None = None
        for part in call.parts:
            request = part.request
            if request is None or request.kind is not Kind.PROMPT:
                continue
            name = f"{call.form.request_id}-{part.choice.index}-{request.request_id:08x}"
            self.caches.hold(name, request)
            self.metrics.done(request, part.choice.answer.finish_reason)
            part.request = None
            if first is None:
                first = kv_transfer_params(
                    self.caches.engine_id,
                    name,
                    self._side.host,
                    self._side.port,
                    request.prompt_tokens,
                    self._block_size,
                    self._blocks_given,
                )
                self._blocks_given += len(first["remote_block_ids"][0])
        return first

    def end(self, call: Call) -> None:
        """Count what is done, cancel what is not."""
        for part in call.parts:
            request, part.request = part.request, None
            if request is None:
                continue
            if request.finished and request.kind is not Kind.PROMPT:
                self.metrics.done(request, part.choice.answer.finish_reason)
            else:
                self.metrics.done(request, "abort")
                self._time.cancel(request)
        for callback in call.over:
            callback()
