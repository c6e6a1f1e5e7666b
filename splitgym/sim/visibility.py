"""Keeps the `ClusterView` true: writes what changed since the last decision, and nothing else."""

import numpy as np
from numpy.typing import NDArray

from splitgym.errors import ActionError
from splitgym.profile.tables import TICK_BITS, mixed_time_ns, prompt_time_ns, token_time_ticks
from splitgym.sim.machine import Iteration, Machine
from splitgym.sim.network import Network
from splitgym.sim.pools import present_pool
from splitgym.types import Pool
from splitgym.view import SHARE_TIME_CONSTANT_NS, ClusterView

_TICK_MASK = (1 << TICK_BITS) - 1


class Visibility:
    """What schedulers see of the machines, and the profile's predictions that both need.

    Args:
        view: filled by `refresh`.
        machines, home: (M,) the cluster's state.
        network: transfers in flight.
        confine: restrict each phase to its own and the mixed pool.
        oracle: show what true output lengths will need.
        machine_row: (M,) rows of the tables by which machines work; the view's may be wrong.
    """

    def __init__(
        self,
        view: ClusterView,
        machines: list[Machine],
        home: list[Pool],
        network: Network,
        confine: bool,
        oracle: bool,
        machine_row: NDArray[np.int64],
    ):
        self.view = view
        self._machines = machines
        self._home = home
        self._network = network
        self._confine = confine
        self._oracle = oracle
        self._rows, self._shown_rows = machine_row.tolist(), view.machine_row.tolist()
        self._dirty = set(range(len(machines)))
        self._alone_ns: dict[tuple[int, int], int] = {}
        self._share = [0.0] * len(machines)
        self._share_at_ns = [0] * len(machines)
        self.can_route = True

    def changed(self, *machines: int) -> None:
        """These machines differ from what the view shows."""
        self._dirty.update(machines)

    # ---- predictions --------------------------------------------------------------------------------------

    def prompt_alone_ns(self, machine: Machine, tokens: int) -> int:
        """Time of a prompt of `tokens` alone in an iteration, as schedulers believe [ns]."""
        return self._alone(self._shown_rows[machine.index], tokens)

    def _alone(self, row: int, tokens: int) -> int:
        key = (row, tokens)
        if key not in self._alone_ns:
            self._alone_ns[key] = int(prompt_time_ns(self.view.tables, *key))
        return self._alone_ns[key]

    def iteration_ns(self, machine: Machine, iteration: Iteration) -> int:
        """Length of an iteration [ns]; carries the fraction of a nanosecond of token iterations."""
        row = self._rows[machine.index]
        decodes = iteration.decodes
        if len(decodes) == len(machine.batch):
            context = machine.batch_context
        else:
            context = sum(job.prompt_tokens + job.generated for job in decodes)
        if not iteration.prompts:
            ticks = int(token_time_ticks(self.view.tables, row, len(decodes), context)) + machine.ticks_carry
            machine.ticks_carry = ticks & _TICK_MASK
            return max(1, ticks >> TICK_BITS)
        if decodes:
            tokens = iteration.prompt_tokens + len(decodes)
            time_ns = int(mixed_time_ns(self.view.tables, row, tokens, len(decodes), context))
        else:
            time_ns = self._alone(row, iteration.prompt_tokens)
        for job, chunk in zip(iteration.prompts, iteration.chunks, strict=False):
            if job.computed:
                # Attention of a later chunk to those before it: what the whole costs more than its parts.
                reached = self._alone(row, job.computed + chunk)
                before = self._alone(row, job.computed)
                time_ns += max(0, reached - before - self._alone(row, chunk))
        return time_ns

    def prompts_ran(self, machine: int, iteration: Iteration, now_ns: int) -> None:
        """Count an iteration with prompts towards the machine's recent share of time given to prompts.

        A decayed mean by rational arithmetic (an implicit Euler step), the same on every machine. Time
        without prompts only decays it: readers do that, see `schedulers.predict.prompt_share`.
        """
        tau = SHARE_TIME_CONSTANT_NS
        gap_ns = iteration.start_ns - self._share_at_ns[machine]
        spent_ns = now_ns - iteration.start_ns
        share = self._share[machine] * tau / (tau + gap_ns)
        self._share[machine] = (share * tau + spent_ns) / (tau + spent_ns)
        self._share_at_ns[machine] = now_ns

    # ---- the view -----------------------------------------------------------------------------------------

    def refresh(self, now_ns: int) -> None:
        """Write the machines that changed."""
        self.view.clock[0] = now_ns
        if self._dirty:
            for index in self._dirty:
                self._write(index)
            self._dirty.clear()
            self._allow()

    def _write(self, i: int) -> None:
        view, machine = self.view, self._machines[i]
        home = self._home[i]
        iteration = machine.iteration
        view.available[i] = machine.available
        view.home_pool[i] = home
        view.pool[i] = present_pool(machine, home)
        view.prompt_requests[i] = len(machine.prompt_queue)
        view.prompt_tokens[i] = machine.pending_prompt_tokens
        view.prompt_queue_ns[i] = machine.queued_ns
        view.iteration_end_ns[i] = iteration.end_ns if iteration else 0
        view.iteration_prompts[i] = len(iteration.prompts) if iteration else 0
        view.prompt_share[i] = self._share[i]
        view.prompt_share_at_ns[i] = self._share_at_ns[i]
        view.running[i] = machine.running
        view.running_context_tokens[i] = machine.context
        view.running_prompt_tokens[i] = machine.context_prompts
        view.inbound[i] = len(machine.inbound)
        view.inbound_prompt_tokens[i] = machine.inbound_prompt_tokens
        view.transfers[i] = len(self._network.in_flight[i])
        view.kv_used_tokens[i] = machine.used
        if self._oracle:
            view.oracle_promised_tokens[i] = machine.promised

    def _allow(self) -> None:
        """Who may be chosen: available machines, of the right pools where confined.

        Where confinement would leave a phase without a machine, it is lifted for that phase.
        """
        view = self.view
        self.can_route = bool(view.available.any())
        view.prompt_allowed[:] = view.available
        view.token_allowed[:] = view.available
        if self._confine:
            prompt = view.available * (view.pool != Pool.TOKEN)
            token = view.available * (view.pool != Pool.PROMPT)
            if prompt.any():
                view.prompt_allowed[:] = prompt
            if token.any():
                view.token_allowed[:] = token


def check_route(view: ClusterView, action: tuple[int, int], who: str) -> None:
    """Refuse a pair that is no pair of allowed machines.

    Raises:
        ActionError: says which machine and why.
    """
    m = len(view.machine_row)
    allowed = (view.prompt_allowed, view.token_allowed)
    for machine, phase, flags in zip(action, ("prompt", "token"), allowed, strict=True):
        if not 0 <= machine < m:
            raise ActionError(f"{who} chose {phase} machine {machine} of {m}")
        if not flags[machine]:
            raise ActionError(
                f"{who} chose {phase} machine {machine}, which may not be chosen now (failed, switching, "
                "or outside the pools of that phase)"
            )
