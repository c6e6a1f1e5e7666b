"""Bookkeeping of a run: outcomes, energy, and the counts that schedulers may see."""

import numpy as np

from splitgym.cluster import Cluster
from splitgym.profile import Profile
from splitgym.sim.job import Job
from splitgym.sim.machine import Iteration
from splitgym.sim.outcomes import NEVER, Outcomes
from splitgym.trace import Trace
from splitgym.types import NS_PER_S, Pool
from splitgym.view import (
    ARRIVED_PROMPT_TOKENS,
    ARRIVED_REQUESTS,
    COMPLETED_OUTPUT_TOKENS,
    COMPLETED_REQUESTS,
    OUTPUT_DECAY,
    ClusterView,
)


class _Power:
    """Power of one machine type in whole watts, remembered by batch.

    Whole watts times nanoseconds add up exactly, in any order: two engines count the same energy.
    """

    def __init__(self, profile: Profile):
        self._profile = profile
        self._prompt: dict[int, int] = {}
        self._token: dict[int, int] = {}
        self.idle_w = round(profile.idle_power_w)

    def watts(self, iteration: Iteration) -> int:
        """Power during an iteration; one with prompts draws what its prompts draw."""
        if iteration.prompts:
            tokens = iteration.prompt_tokens
            if tokens not in self._prompt:
                self._prompt[tokens] = round(self._profile.prompt_power_w(tokens))
            return self._prompt[tokens]
        size = len(iteration.decodes)
        if size not in self._token:
            self._token[size] = round(self._profile.token_power_w(size))
        return self._token[size]


class Accounts:
    """Writes `Outcomes` and the cluster-wide parts of the view."""

    def __init__(self, cluster: Cluster, trace: Trace, view: ClusterView):
        self.outcomes = Outcomes.empty(trace, cluster.num_machines)
        self.unfinished = len(trace)
        self._view = view
        powers = [_Power(profile) for profile in cluster.rows]
        self._power = [powers[row] for row in cluster.machine_row]
        self._active_w_ns = [0] * cluster.num_machines
        self._failed_at: dict[int, int] = {}
        self._down_ns = np.zeros(cluster.num_machines, np.int64)
        self._in_system = 0

    # ---- requests -----------------------------------------------------------------------------------------

    def arrived(self, prompt_tokens: int) -> None:
        self._in_system += 1
        self._view.counters[ARRIVED_REQUESTS] += 1
        self._view.counters[ARRIVED_PROMPT_TOKENS] += prompt_tokens

    def routed(self, job: Job) -> None:
        out, i = self.outcomes, job.request_id
        out.prompt_machine[i] = job.prompt_machine
        out.token_machine[i] = job.token_machine
        out.decision_id[i] = job.decision_id
        out.attempts[i] += 1

    def prompt_started(self, job: Job, now_ns: int) -> None:
        self.outcomes.prompt_start_ns[job.request_id] = now_ns

    def prompt_ended(self, job: Job, now_ns: int) -> None:
        out, i = self.outcomes, job.request_id
        out.prompt_end_ns[i] = now_ns
        out.prompts_computed[i] += 1
        if out.first_token_ns[i] == NEVER:
            out.first_token_ns[i] = now_ns

    def transfer_started(self, job: Job, now_ns: int) -> None:
        self.outcomes.transfer_start_ns[job.request_id] = now_ns

    def transfer_ended(self, job: Job, now_ns: int) -> None:
        self.outcomes.transfer_end_ns[job.request_id] = now_ns

    def transfer_aborted(self, job: Job) -> None:
        self.outcomes.transfer_start_ns[job.request_id] = NEVER

    def decode_started(self, job: Job, now_ns: int) -> None:
        out, i = self.outcomes, job.request_id
        if out.decode_start_ns[i] == NEVER:
            out.decode_start_ns[i] = now_ns

    def preempted(self, job: Job) -> None:
        self.outcomes.preemptions[job.request_id] += 1

    def cancelled(self, job: Job) -> None:
        """The attempt is void; what it left in the outcomes is blank again, but for the first token."""
        out, i = self.outcomes, job.request_id
        out.lost_tokens[i] += job.generated
        for times in (
            out.prompt_start_ns,
            out.prompt_end_ns,
            out.transfer_start_ns,
            out.transfer_end_ns,
            out.decode_start_ns,
        ):
            times[i] = NEVER

    def finished(self, job: Job, now_ns: int) -> None:
        out, view = self.outcomes, self._view
        out.finish_ns[job.request_id] = now_ns
        out.finish_order.append(job.request_id)
        self.unfinished -= 1
        self._in_system -= 1
        view.counters[COMPLETED_REQUESTS] += 1
        view.counters[COMPLETED_OUTPUT_TOKENS] += job.output_tokens
        view.mean_output[0] = OUTPUT_DECAY * view.mean_output[0] + job.output_tokens
        view.mean_output[1] = OUTPUT_DECAY * view.mean_output[1] + 1.0

    # ---- machines -----------------------------------------------------------------------------------------

    def spent(self, machine: int, iteration: Iteration, now_ns: int) -> None:
        """Time and energy of an iteration that ended, or was cut short by a failure."""
        out = self.outcomes
        spent_ns = now_ns - iteration.start_ns
        self._active_w_ns[machine] += self._power[machine].watts(iteration) * spent_ns
        out.busy_ns[machine] += spent_ns
        if iteration.prompts:
            out.prompt_busy_ns[machine] += spent_ns

    def produced(self, machine: int, prompt_tokens: int, output_tokens: int) -> None:
        """Tokens that an iteration computed."""
        out = self.outcomes
        out.prompted_tokens[machine] += prompt_tokens
        out.generated_tokens[machine] += output_tokens

    def failed(self, machine: int, iteration: Iteration | None, now_ns: int) -> None:
        if iteration is not None:
            self.spent(machine, iteration, now_ns)
        self._failed_at[machine] = now_ns

    def recovered(self, machine: int, now_ns: int) -> None:
        self._down_ns[machine] += now_ns - self._failed_at.pop(machine)

    # ---- the whole ----------------------------------------------------------------------------------------

    def sample(self, now_ns: int, view: ClusterView) -> None:
        """Add a row to the timeline."""
        self.outcomes.timeline.append(
            (
                now_ns,
                *(int((view.pool == pool).sum()) for pool in Pool),
                int((view.home_pool == Pool.PROMPT).sum()),
                int((view.home_pool == Pool.TOKEN).sum()),
                int(view.prompt_requests.sum()),
                int(view.prompt_tokens.sum()),
                int(view.running.sum()),
                self._in_system,
            )
        )

    def close(self, now_ns: int) -> Outcomes:
        """Outcomes as of now: idle energy and up time are brought up to date."""
        out = self.outcomes
        out.end_ns = now_ns
        down_ns = self._down_ns.copy()
        for machine, since_ns in self._failed_at.items():
            down_ns[machine] += now_ns - since_ns
        out.up_ns[:] = now_ns - down_ns
        for machine, power in enumerate(self._power):
            idle_ns = max(0, int(out.up_ns[machine] - out.busy_ns[machine]))
            out.energy_j[machine] = (self._active_w_ns[machine] + power.idle_w * idle_ns) / NS_PER_S
        return out
