"""A fleet: N environments of one kind, each with its own simulation, seed and window."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgym.envs.base import SchedulingEnv
from splitgym.envs.fleet.kernel import find_bad
from splitgym.envs.fleet.office import compilable, make_office, weights_of
from splitgym.envs.fleet.records import (
    RUNS,
    SAID_ANSWERED,
    SAID_ASKED,
    SAID_ELAPSED,
    SAID_INVALID,
    SAID_LONGS,
    SAID_OVER,
    SAID_REALS,
    SAID_REWARD,
    SEAT,
    TERMS,
)
from splitgym.envs.fleet.threads import Threads
from splitgym.errors import ActionError, ConfigError
from splitgym.slo import reference_times_s
from splitgym.trace import Trace
from splitgym.types import Pool
from splitgym.view import NUM_COUNTERS

_TRIES = 20


class Fleet:
    """N environments like `env`, stepped together. Actions and observations are arrays with one row each.

    After `step` or `begin`, the arrays hold what came of it, until the step after the next one.

    Args:
        env: a template: its arguments, spaces and workload are those of all; it is not stepped itself.
        num_envs: N.
        threads: that step them; None is one a core.

    Raises:
        ConfigError: `compilable` says why not.
    """

    def __init__(self, env: SchedulingEnv, num_envs: int, threads: int | None = None) -> None:
        why = compilable(env)
        if why:
            raise ConfigError(f"a fleet cannot be made: {why}")
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}, expected at least 1")
        self.env = env
        self.num_envs = n = num_envs
        self._weights = weights_of(env.reward)
        self._engines: list[Any] = [env.engine, *(env.make_engine() for _ in range(n - 1))]
        self._generators = [np.random.default_rng() for _ in range(n)]
        self._references: list[NDArray[np.float64]] = [np.zeros((3, 0))] * n
        self._results: list[Any] = [None] * n  # `Outcomes` of the episodes in progress
        self._orders: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * n
        self._collected = [0] * n
        self._drained: list[NDArray[np.float64]] = []
        self._ended_sums = np.zeros(len(TERMS))
        self._seats = np.zeros(n, SEAT)
        self._office = make_office(env)
        self._office_at, self._turn_at = self._office.ctypes.data, self._office["turn"]
        self._held: dict[str, NDArray[Any]] = {}
        self._hold("seats", self._seats)
        self._places = self._hold("places", np.zeros(n, np.int64))
        self._make_arrays()
        self._threads = Threads(self._office, n, threads)
        self._turn = 0
        self._all = np.arange(n)
        self._ended = True
        for engine in self._engines:
            engine.observed = True

    def _hold(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Keep an array, and tell compiled code where it is."""
        self._held[name] = array
        self._office[name] = array.ctypes.data
        return array

    def _make_arrays(self) -> None:
        """For actions, observations and what a step says."""
        env, n = self.env, self.num_envs
        shape = getattr(env.action_space, "nvec", None)
        sizes = np.array([env.action_space.n] if shape is None else shape, np.int64)  # type: ignore[attr-defined]
        self._hold("sizes", sizes)
        self._actions = self._hold("actions", np.zeros((n, 3), np.int64))
        self._numbers = len(sizes)
        self._action_shape = (n,) if len(sizes) == 1 else (n, len(sizes))
        self._allowed = self._hold("allowed", np.zeros((n, int(sizes.sum())), np.uint8))
        both = {
            key: self._hold(key, np.zeros((2, n, *box.shape), np.float32))  # type: ignore[misc]
            for key, box in env.observation_space.items()  # type: ignore[attr-defined]
        }
        self._buffers = [{key: array[turn] for key, array in both.items()} for turn in (0, 1)]
        self._hold("prior_weights", env.prior)
        self._reals = self._hold("said_reals", np.zeros((SAID_REALS + len(self._weights), n)))
        self._longs = self._hold("said_longs", np.zeros((SAID_LONGS, n), np.int64))
        self._longs[[SAID_ANSWERED, SAID_ASKED]] = -1
        self._office["num_envs"], self._office["num_sizes"] = n, len(sizes)
        self._office["num_prior"], self._office["num_allowed"] = len(env.prior), int(sizes.sum())

    # ---- what came of the last call -----------------------------------------------------------------------

    @property
    def observations(self) -> dict[str, NDArray[np.float32]]:
        """(N, ...) arrays by key. They are overwritten by the call after the next one."""
        return self._buffers[self._turn]

    @property
    def rewards(self) -> NDArray[np.float64]:
        """(N,) of the last step."""
        return self._reals[SAID_REWARD].copy()

    def terms(self) -> dict[str, NDArray[np.float64]]:
        """(N,) weighted terms by name, whose sum is the reward."""
        rows = self._reals[SAID_REALS:].copy()
        return {TERMS[c]: row for (c, _), row in zip(self._weights, rows)}

    @property
    def over(self) -> NDArray[np.bool_]:
        """(N,) the episode has ended."""
        return self._longs[SAID_OVER] != 0

    @property
    def any_over(self) -> bool:
        """Has any episode ended?"""
        return self._ended

    @property
    def elapsed_s(self) -> NDArray[np.float64]:
        """(N,) simulated time of the last step."""
        return self._reals[SAID_ELAPSED].copy()

    @property
    def asked(self) -> NDArray[np.int64]:
        """(N,) the pending decision, -1 where there is none."""
        return self._longs[SAID_ASKED].copy()

    @property
    def answered(self) -> NDArray[np.int64]:
        """(N,) the decision that the last action answered."""
        return self._longs[SAID_ANSWERED].copy()

    @property
    def invalid_actions(self) -> NDArray[np.int64]:
        """(N,) actions of the episode so far that were not allowed as they came."""
        return self._longs[SAID_INVALID].copy()

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, A) which actions are allowed now, a row as of `SchedulingEnv.action_masks`."""
        return self._allowed.view(np.bool_)

    def outcomes(self, i: int) -> list[tuple[int, bool, float, float]]:
        """(decision, good, TTFT slowdown, TBT slowdown) of what environment i completed in its last step."""
        seat, slo = self._seats[i], self.env.cluster.config.slo
        out = self._engines[i].outcomes()
        found = []
        for request in out.finish_order[seat["finished_from"] : seat["finished_seen"]]:
            if request < seat["first"]:
                continue
            ttft_s, tbt_s, _ = self._references[i][:, request].tolist()
            first, finish = int(out.first_token_ns[request]), int(out.finish_ns[request])
            output = int(out.output_tokens[request])
            ttft = (first - int(out.arrival_ns[request])) * 1e-9 / ttft_s
            tbt = (finish - first) * 1e-9 / (output - 1) / tbt_s if output > 1 else float("nan")
            good = ttft <= slo.ttft_slowdown and not tbt > slo.tbt_slowdown
            found.append((int(out.decision_id[request]), good, ttft, tbt))
        return found

    def drain(self) -> NDArray[np.float64]:
        """(K, 3) good, TTFT and TBT slowdown of the requests that completed since the last call."""
        for i in range(self.num_envs):
            self._collect(i)
        found, self._drained = self._drained, []
        return np.concatenate(found) if found else np.zeros((0, 3))

    def episode(self, i: int) -> tuple[dict[str, Any], Any]:
        """Metrics and requests of environment i's ended episode, as in the last info of `SchedulingEnv`."""
        return self.env.ledger.final(self._engines[i].outcomes())

    def drain_terms(self) -> dict[str, float]:
        """Sum of each weighted term over all environments and steps since the last call."""
        sums = self._ended_sums + self._seats["sums"].sum(axis=0)
        self._ended_sums[:] = self._seats["sums"][:] = 0.0
        return {TERMS[c]: weight * float(sums[c]) for c, weight in self._weights}

    def pools(self, i: int) -> dict[str, float]:
        """Machines of environment i in each pool by present work."""
        pools = self._engines[i].view.pool.tolist()
        return {f"{pool.name.lower()}_machines": float(pools.count(pool)) for pool in Pool}

    # ---- stepping -----------------------------------------------------------------------------------------

    def begin(
        self,
        places: NDArray[np.int64],
        seeds: dict[int, int | None] | None = None,
        trace: Trace | None = None,
        keep_others: bool = False,
    ) -> None:
        """Begin an episode in each of `places` and advance to its first decision.

        Args:
            places: (n,) environments.
            seeds: by environment; without one its generator goes on.
            trace: runs that trace instead of a drawn window.
            keep_others: write into the buffer of the last step, which is then whole.

        Raises:
            ConfigError: no window with a decision was found.
        """
        for place, seed in (seeds or {}).items():
            if seed is not None:
                self._generators[place] = np.random.default_rng(seed)
        left = np.asarray(places, np.int64)
        if not keep_others:
            self._copy_others(left)
        for _ in range(1 if trace is not None else _TRIES):
            for i in left.tolist():
                self._start(i, trace)
            self._run(left)
            left = left[self._seats["over"][left] != 0]
            if not len(left):
                return
        raise ConfigError("no decision comes up before all is done; raise the rate")

    def step(self, actions: Any) -> None:
        """Answer the pending decision of every environment that has one, and advance.

        Args:
            actions: (N,) or (N, k) integers of the action space. Rows of environments that are over are not
                read.

        Raises:
            ActionError: another shape, or a number outside the space; nothing has been stepped then.
        """
        array = np.asarray(actions)
        if array.dtype.kind not in "iu" or array.shape != self._action_shape:
            raise ActionError(
                f"actions of shape {array.shape} and type {array.dtype}: expected integers of shape "
                f"{self._action_shape}"
            )
        self._actions[:, : self._numbers] = array.reshape(self.num_envs, -1)
        bad = find_bad(self._office_at)
        if bad >= 0:
            raise ActionError(f"action {array[bad]!r} of environment {bad} is not in {self.env.action_space}")
        going = self._all
        if self._ended:
            going = np.flatnonzero(self._seats["over"] == 0)
        self._copy_others(going)
        self._run(going)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    # ---- inside -------------------------------------------------------------------------------------------

    def _copy_others(self, places: NDArray[np.int64]) -> None:
        """Take the other buffer; environments that are not stepped keep their observation."""
        before = self._buffers[self._turn]
        self._turn_at[0] = self._turn = 1 - self._turn
        if len(places) < self.num_envs:
            others = np.setdiff1d(np.arange(self.num_envs), places)
            for key, array in self._buffers[self._turn].items():
                array[others] = before[key][others]

    def _collect(self, i: int) -> None:
        """Keep the newest completions of environment i for `drain`."""
        seat, slo = self._seats[i], self.env.cluster.config.slo
        order = self._orders[i][self._collected[i] : seat["finished_seen"]]
        self._collected[i] = seat["finished_seen"]
        rows = order[order >= seat["first"]]
        if not len(rows):
            return
        out = self._results[i]
        ttft_s, tbt_s, _ = self._references[i][:, rows]
        first, finish, output = out.first_token_ns[rows], out.finish_ns[rows], out.output_tokens[rows]
        ttft = (first - out.arrival_ns[rows]) * 1e-9 / ttft_s
        tbt = np.where(output > 1, (finish - first) * 1e-9 / np.maximum(1, output - 1) / tbt_s, np.nan)
        good = (ttft <= slo.ttft_slowdown) & ~(tbt > slo.tbt_slowdown)
        self._drained.append(np.stack([good.astype(np.float64), ttft, tbt], axis=1))

    def _start(self, i: int, trace: Trace | None) -> None:
        """A new window for environment i, as `SchedulingEnv.reset`."""
        self._collect(i)
        self._ended_sums += self._seats["sums"][i]
        env, rng, engine = self.env, self._generators[i], self._engines[i]
        drawn = env.workload.draw(rng) if trace is None else trace
        engine.reset(drawn, int(rng.integers(2**31)))
        outcomes = engine.recorded
        references = np.stack(
            reference_times_s(env.cluster.tables, outcomes.prompt_tokens, outcomes.output_tokens)
        )
        self._references[i], self._results[i] = references, outcomes
        self._orders[i], self._collected[i] = engine.finished, 0
        seat, warmup_ns = self._seats[i : i + 1], env.ledger.warmup_ns
        seat[...] = np.zeros(1, SEAT)
        seat["head"] = engine.address
        seat["stage"] = RUNS
        seat["end_ns"] = env.end_ns
        seat["warmup_ns"] = warmup_ns
        seat["references"] = references.ctypes.data
        seat["first"] = seat["arrivals_seen"] = np.searchsorted(outcomes.arrival_ns, warmup_ns)
        seat["answered"] = -1
        seat["last"][0, :NUM_COUNTERS] = engine.view.counters
        seat["last"][0, NUM_COUNTERS] = engine.view.clock[0]

    def _run(self, places: NDArray[np.int64]) -> None:
        """Step the environments in `places` to their next question, growing what is too small on the way."""
        lacking, ended = self._step(places)
        while lacking:
            left = np.flatnonzero(self._seats["why"])
            for i in left.tolist():
                self._engines[i].grow(int(self._seats["why"][i]))
            lacking, more = self._step(left)
            ended += more
        self._ended = ended > 0 or (len(places) < self.num_envs and bool(self._longs[SAID_OVER].any()))

    def _step(self, places: NDArray[np.int64]) -> tuple[int, int]:
        """See `Threads.run`."""
        self._places[: len(places)] = places
        return self._threads.run(len(places))
