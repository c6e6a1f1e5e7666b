"""What happens beside learning: evaluations, checkpoints, TensorBoard, a progress bar, and a clean end on a
signal.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch.utils.tensorboard import SummaryWriter

from agents.config import RunConfig
from agents.models import counters
from agents.runs import RunFolder

Judge = Callable[[Any], Mapping[str, float]]
"""Metrics of a model on the validation windows; "goodput" decides which model is best."""

PROGRESS_EVERY_S = 2.0


class Scalars(KVWriter):
    """Writes numbers into TensorBoard event files; after a resume, takes back those of the steps that were
    lost.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=steps + 1 if steps else None)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        """See `KVWriter`."""
        for key, value in key_values.items():
            if "tensorboard" not in (key_excluded.get(key) or ()) and np.isscalar(value):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See `KVWriter`."""
        self._writer.close()


def tensorboard_logger(run: RunFolder, steps: int) -> Logger:
    """A logger into the run's TensorBoard folder, from `steps` on."""
    return Logger(str(run.tensorboard), [Scalars(run.tensorboard, steps)])


class Housekeeping(BaseCallback):
    """Evaluates and saves between two updates, so that a checkpoint is a consistent state.

    An evaluation's row is written before the checkpoint of the same step: a kill in between costs the row,
    and the resumed run, which starts before it, makes it again.
    """

    def __init__(self, config: RunConfig, run: RunFolder, judge: Judge, state: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.run, self.judge = config, run, judge
        self.evaluated_at = int(state.get("evaluated_at", -1))
        self.saved_at = int(state.get("steps", -1))
        self.boundary = max(0, self.saved_at)
        self.interrupted = False
        self.last: Mapping[str, float] = {}

    def _on_rollout_start(self) -> None:
        steps = self.boundary = self.model.num_timesteps
        due = self.evaluated_at < 0 or steps // self.config.evaluation.every > (
            self.evaluated_at // self.config.evaluation.every
        )
        if due and steps != self.evaluated_at:
            self.evaluate()
        if self.saved_at < 0 or steps - self.saved_at >= self.config.checkpoint.every:
            self.save("running")

    def _on_step(self) -> bool:
        return not self.interrupted

    def evaluate(self) -> None:
        """Judge the model, log it, and keep it if it is the best."""
        steps = self.model.num_timesteps
        started = time.perf_counter()
        self.last = metrics = dict(self.judge(self.model))
        for name, value in metrics.items():
            self.logger.record(f"eval/{name}", value)
        self.logger.record("time/eval_s", time.perf_counter() - started)
        self.logger.dump(steps)
        rows: list[dict[str, Any]] = list(self.run.evaluations())
        rows = [row for row in rows if int(row["steps"]) < steps]
        best = metrics["goodput"] > self.run.best_score("goodput")
        self.run.write_evaluations([*rows, {"steps": steps, **metrics, "best": int(best)}])
        if best:
            self.run.save_best(self.model, {"steps": steps, **metrics})
        self.evaluated_at = steps

    def save(self, state: str) -> None:
        """Write a checkpoint of the present state."""
        content = {"evaluated_at": self.evaluated_at, "counters": counters(self.model)}
        self.run.save_checkpoint(self.model, content, self.config.checkpoint.keep)
        self.saved_at = self.model.num_timesteps
        self.run.set_progress(self.saved_at, self.config.steps, state)

    def finish(self) -> None:
        """After learning: the last evaluation and checkpoint; of an interrupted run, what it has."""
        if self.interrupted:
            # The policy is the one of the last update; the steps of the broken rollout are what is lost.
            if self.config.algo != "dqn":
                self.model.num_timesteps = self.boundary
            if self.model.num_timesteps != self.saved_at:
                self.save("interrupted")
            self.run.set_progress(self.saved_at, self.config.steps, "interrupted")
            return
        if self.model.num_timesteps != self.evaluated_at:
            self.evaluate()
        self.save("finished")


class Interruptible(Protocol):
    """What a signal asks to end."""

    interrupted: bool


class Signals:
    """Within it, the first SIGINT or SIGTERM asks for a clean end; the second SIGINT ends at once."""

    def __init__(self, housekeeping: Interruptible) -> None:
        self._housekeeping = housekeeping
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._housekeeping.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._housekeeping.interrupted = True

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the owner of the process decides
                return self
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class RolloutMetrics(BaseCallback):
    """TensorBoard scalars of what training itself sees: goodput, slowdowns, pools, reward terms."""

    def __init__(self, window: int = 5000) -> None:
        super().__init__()
        # good, TTFT slowdown, TBT slowdown of the newest completions
        self._completions: deque[tuple[float, float, float]] = deque(maxlen=window)
        self._episodes: deque[dict[str, float]] = deque(maxlen=32)
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._returns = np.zeros(0)
        self._lengths = np.zeros(0, np.int64)

    def _on_training_start(self) -> None:
        self._drain = getattr(self.training_env, "drain", None)
        self._returns = np.zeros(self.training_env.num_envs)
        self._lengths = np.zeros(self.training_env.num_envs, np.int64)

    def _on_step(self) -> bool:
        self._returns += self.locals["rewards"]
        self._lengths += 1
        self._steps += len(self._returns)
        if self._drain is not None:  # outcomes and terms are collected there
            for place in np.flatnonzero(self.locals["dones"]).tolist():
                self._episode_ended(place, self.locals["infos"][place])
            return True
        for i, info in enumerate(self.locals["infos"]):
            self._completions.extend(row[1:] for row in info.get("outcomes_by_decision", ()))
            for name, value in info.get("reward_terms", {}).items():
                if value:
                    self._sums[name] = self._sums.get(name, 0.0) + value
            if self.locals["dones"][i]:
                self._episode_ended(i, info)
        return True

    def _episode_ended(self, i: int, info: dict[str, Any]) -> None:
        # SB3 reads this after the callbacks, for its own rollout/ep_rew_mean.
        info["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i])}
        metrics = {f"episode/{k}": v for k, v in info.get("episode_metrics", {}).items()}
        pools = info.get("metrics", {})
        metrics |= {f"pools/{k}": pools[k] for k in pools if k.endswith("_machines")}
        metrics["steps/invalid_actions"] = info.get("invalid_actions", 0) / max(1, self._lengths[i])
        self._episodes.append({k: float(v) for k, v in metrics.items() if not isinstance(v, str)})
        self._returns[i] = self._lengths[i] = 0

    def _on_rollout_end(self) -> None:
        if self._drain is not None:
            completions, self._sums = self._drain()
            self._completions.extend(map(tuple, completions.tolist()))
        if self._completions:
            good, ttft, tbt = np.array(self._completions, float).T
            self.logger.record("requests/goodput", float(good.mean()))
            for name, values in (("ttft", ttft), ("tbt", tbt[~np.isnan(tbt)])):
                for p in (50, 90, 99) if len(values) else ():
                    self.logger.record(f"requests/{name}_slowdown_p{p}", float(np.percentile(values, p)))
        for name in self._episodes[-1] if self._episodes else ():
            self.logger.record(name, float(np.mean([e[name] for e in self._episodes])))
        for name, total in self._sums.items():
            self.logger.record(f"steps/reward_{name}", total / max(1, self._steps))
        self._sums, self._steps = {}, 0


class Pull(BaseCallback):
    """Lets the pull towards the start fall over the run, and logs how far the policy has moved."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        own = self._config.on_policy
        policy: Any = self.model.policy
        if not getattr(policy, "pulled", False):
            return
        done = min(1.0, self.model.num_timesteps / self._config.steps)
        policy.pull = own.start_kl + done * (own.start_kl_end - own.start_kl)
        policy.entropy_weight = own.ent_coef
        if policy.divergences:
            self.logger.record("train/start_kl", float(np.mean(policy.divergences)))
            policy.divergences.clear()
        self.logger.record("train/pull", policy.pull)


class Bar(BaseCallback):
    """A progress bar in the terminal: decisions, speed, the newest validation goodput, time left."""

    def __init__(self, total: int, housekeeping: Housekeeping, run: RunFolder, show: bool) -> None:
        super().__init__()
        self._total, self._housekeeping, self._run = total, housekeeping, run
        self._bar = Progress(
            TextColumn("[bold]learning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:.0f} decisions/s"),
            TextColumn("validation goodput {task.fields[goodput]}"),
            TimeRemainingColumn(),
            disable=not show,
        )
        self._task = TaskID(0)
        self._started = (0.0, 0)
        self._next = 0.0

    def _on_training_start(self) -> None:
        steps = self.model.num_timesteps
        self._started = (time.monotonic(), steps)
        self._task = self._bar.add_task("", total=self._total, completed=steps, speed=0.0, goodput="-")
        self._bar.start()

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_EVERY_S
            self.refresh(now)
        return True

    def refresh(self, now: float) -> None:
        """Show, and write progress.json."""
        steps = self.model.num_timesteps
        begun, before = self._started
        speed = (steps - before) / max(1e-9, now - begun)
        goodput = self._housekeeping.last.get("goodput")
        text = "-" if goodput is None else f"{goodput:.3f}"
        self._bar.update(self._task, completed=min(steps, self._total), speed=speed, goodput=text)
        self._run.set_progress(steps, self._total, "running")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar.live.is_started:
            self.refresh(time.monotonic())
            self._bar.stop()
