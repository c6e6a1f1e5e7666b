"""A resolved cluster: configuration plus the profiles it names, as the arrays that engines and views need."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from splitgym import profile as profiles
from splitgym.config import ClusterConfig, SloConfig, VllmBatchingConfig
from splitgym.errors import ConfigError, TraceError
from splitgym.profile import Profile, ProfileTables, stack_tables
from splitgym.trace import Trace
from splitgym.types import Pool, to_ns
from splitgym.view import ClusterRules, ClusterView, empty_view

_NEVER_OVERLAP = 1 << 62
_POOL = {"prompt": Pool.PROMPT, "token": Pool.TOKEN, "mixed": Pool.MIXED}


@dataclass(frozen=True)
class Cluster:
    """M machines of one model. Build with `Cluster.resolve`."""

    config: ClusterConfig
    rows: tuple[Profile, ...]
    """Profiles of the machine types; row 0 is the reference machine of the slowdowns."""
    machine_row: NDArray[np.int64]  # (M,) row of each machine
    believed: tuple[float, float] | None = None
    """See `misjudged`."""

    @classmethod
    def resolve(cls, config: ClusterConfig) -> "Cluster":
        """Load the profiles that `config` names.

        A model that only a profile file knows was measured on no other machine: where the configuration
        names no reference for its slowdowns, its first machine is the reference.

        Raises:
            ProfileError: no such profile, or the model does not fit the machine.
        """
        rows = [_reference(config)]
        machine_row: list[int] = []
        for group in config.machines:
            found = profiles.load(config.model, group.machine, group.tensor_parallel)
            if found not in rows[1:]:
                rows.append(found)
            machine_row += [rows.index(found, 1)] * group.count
        if config.batching.max_tasks > 512:
            raise ConfigError(f"batching.max_tasks is {config.batching.max_tasks}: profiles reach 512")
        return cls(config, tuple(rows), np.array(machine_row, np.int64))

    @property
    def num_machines(self) -> int:
        return len(self.machine_row)

    def profile_of(self, machine: int) -> Profile:
        """Profile of one machine."""
        return self.rows[self.machine_row[machine]]

    def misjudged(self, prompt_factor: float, token_factor: float) -> "Cluster":
        """The same cluster, whose schedulers believe in a wrong profile: how much does an error of it cost?

        All that they predict by, the waits that a router works out included, is off by the two factors. The
        reference machine, by which SLOs are defined, is not, and iterations in progress end when they end.

        Args:
            prompt_factor: believed over true time of a prompt.
            token_factor: of a token iteration.

        Raises:
            ConfigError: a factor is not a positive number.
        """
        for factor in (prompt_factor, token_factor):
            if not 0 < factor < np.inf:
                raise ConfigError(f"a misjudged profile's factor is {factor:g}: it must be a positive number")
        return replace(self, believed=(float(prompt_factor), float(token_factor)))

    @property
    def shown_row(self) -> NDArray[np.int64]:
        """(M,) row of the tables that schedulers believe each machine to be."""
        return self.machine_row if self.believed is None else self.machine_row + len(self.rows) - 1

    @cached_property
    def tables(self) -> ProfileTables:
        """Times of all rows; of a misjudged cluster then what is believed of all but the first."""
        true = _times(self.rows)
        if self.believed is None:
            return true
        prompt, token = self.believed
        factors = {"prompt_ns": prompt, "token_base": token, "token_slope": token}
        both = {}
        for name, array in true._asdict().items():
            wrong = np.rint(array[1:] * factors[name]) if name in factors else array[1:]
            both[name] = np.concatenate([array, wrong.astype(array.dtype)])
        return ProfileTables(**both)

    @cached_property
    def power_watts(self) -> NDArray[np.int64]:
        """(2 x rows of the tables, columns) whole watts: first by prompt tokens, then by batch size.

        Rounded as `splitgym.sim.accounts` does. It takes longer than a short run, so it is kept.
        """
        prompt, token = _watts(self.rows, self.config.batching.max_tasks)
        if self.believed is not None:  # nobody is at work in a believed row
            prompt, token = (np.concatenate([watts, watts[1:]]) for watts in (prompt, token))
        return np.concatenate([prompt, token])

    @cached_property
    def home_pools(self) -> NDArray[np.int64]:
        """(M,) `Pool` at the start."""
        return np.array([_POOL[g.pool] for g in self.config.machines for _ in range(g.count)], np.int64)

    @cached_property
    def kv_capacity_tokens(self) -> NDArray[np.int64]:
        """(M,) tokens of KV cache that fit beside the weights; whole blocks under vLLM's rule."""
        batching = self.config.batching
        block = batching.block_size if isinstance(batching, VllmBatchingConfig) else 1
        capacity = [self.profile_of(m).kv_capacity_tokens for m in range(self.num_machines)]
        return np.array(capacity, np.int64) // block * block

    @cached_property
    def link_bytes_per_s(self) -> NDArray[np.int64]:
        """(M,) NIC bandwidth: a machine's InfiniBand links in parallel, or what the configuration says."""
        own = self.config.transfer.bandwidth_bytes_per_s
        machines = range(self.num_machines)
        return np.array([own or self.profile_of(m).machine.network_bytes_per_s for m in machines], np.int64)

    @property
    def kv_bytes_per_token(self) -> int:
        return self.rows[1].kv_bytes_per_token

    @property
    def cost_per_hour(self) -> float:
        """Of the whole cluster, in the profiles' currency."""
        return float(sum(self.profile_of(m).machine.cost_per_hour for m in range(self.num_machines)))

    @cached_property
    def blank(self) -> ClusterView:
        """A view of the idle cluster that nobody may write into."""
        return self.view()

    def view(self) -> ClusterView:
        """A fresh view of the idle cluster."""
        transfer = self.config.transfer
        constants = [
            to_ns(self.profile_of(m).machine.kv_overlap_constant_s) for m in range(self.num_machines)
        ]
        return empty_view(
            self.shown_row,
            self.kv_capacity_tokens,
            self.link_bytes_per_s,
            np.array(constants, np.int64),
            self.home_pools,
            self.tables,
            ClusterRules(
                max_prompt_tokens=self.config.batching.max_prompt_tokens,
                max_tasks=self.config.batching.max_tasks,
                kv_bytes_per_token=self.kv_bytes_per_token,
                overlap_min_tokens=transfer.overlap_min_tokens
                if transfer.mode == "layerwise"
                else _NEVER_OVERLAP,
                ttft_slo=self.config.slo.ttft_slowdown,
                tbt_slo=self.config.slo.tbt_slowdown,
            ),
        )

    def check(self, trace: Trace) -> None:
        """Refuse a trace with a request that can never fit a machine.

        A scheduler may send any request to any machine without knowing its output, so each must fit the
        smallest one.

        Raises:
            TraceError: names the first such row and the machine.
        """
        smallest = int(self.kv_capacity_tokens.argmin())
        capacity = int(self.kv_capacity_tokens[smallest])
        if int(trace.prompt_tokens.max(initial=0)) + int(trace.output_tokens.max(initial=0)) <= capacity:
            return
        need = trace.prompt_tokens.astype(np.int64) + trace.output_tokens
        too_large = np.flatnonzero(need > capacity)
        if len(too_large):
            row = int(too_large[0])
            raise TraceError(
                f"trace {trace.name!r}, row {row}: {need[row]} tokens of KV cache never fit machine "
                f"{smallest} ({self.profile_of(smallest).machine.name}, {capacity} tokens); "
                "drop the row or use a larger machine"
            )


_times = lru_cache(maxsize=256)(stack_tables)


@lru_cache(maxsize=256)
def _watts(rows: tuple[Profile, ...], max_tasks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows, columns) by prompt tokens, and by batch size."""
    longest = max(profile.prompt_power.x[-1] for profile in rows)
    columns = range(max(longest, max_tasks) + 1)
    prompt = [[round(profile.prompt_power_w(n)) for n in columns] for profile in rows]
    token = [[round(profile.token_power_w(n)) for n in columns] for profile in rows]
    return np.array(prompt, np.int64), np.array(token, np.int64)


def _reference(config: ClusterConfig) -> Profile:
    """The machine that slowdowns are measured against."""
    slo, first = config.slo, config.machines[0]
    named = SloConfig(slo.ttft_slowdown, slo.tbt_slowdown) != slo
    if not named and first.machine.endswith(profiles.SUFFIXES) and config.model not in profiles.models():
        return profiles.load(config.model, first.machine, first.tensor_parallel)
    return profiles.load(config.model, slo.reference_machine, slo.reference_tensor_parallel)
