"""How fast an agent learns to route: environment steps, in and across processes, PPO, and its parts.

    python benchmarks/learning.py

bloom-176b, 8 H100 machines, Poisson arrivals at 19 requests/s with the sizes of azure-code-synth; figures in
decisions per second of wall clock, for one process unless it says otherwise.
"""

import time
from typing import Any

import torch as th

from agents.config import RunConfig, resolve
from agents.models import build_model
from agents.task import SimulatorTask
from agents.training import make_vec_env

LOAD = {"trace": "azure-code-synth", "rate_per_s": 19.0, "episode_s": 90.0, "warmup_s": 20.0}


def config(vec: str, num_envs: int) -> RunConfig:
    """The default routing run on the benchmark's load."""
    return resolve({"workload": LOAD, "learner": {"vec": vec, "num_envs": num_envs}})


def environment(steps: int = 3000) -> float:
    """Steps per second of one environment under the index scheduler."""
    task = SimulatorTask(config("in-process", 1))
    env, teacher = task.make_env(), task.teacher()
    env.reset(seed=0)
    teacher.begin(env.unwrapped, 0)
    started = time.perf_counter()
    for _ in range(steps):
        if env.step(teacher.action(env.unwrapped))[3]:
            env.reset()
            teacher.begin(env.unwrapped, 0)
    return steps / (time.perf_counter() - started)


def rollouts(vec: str, num_envs: int, steps: int = 4000) -> tuple[float, float]:
    """Decisions per second of stepping with a fresh policy, and the share of time in the policy."""
    made = config(vec, num_envs)
    venv: Any = make_vec_env(made, SimulatorTask(made))
    model = build_model(made, venv.observation_space, venv.action_space, venv)
    observation = venv.reset()
    deciding = 0.0
    started = time.perf_counter()
    for _ in range(steps // num_envs):
        before = time.perf_counter()
        masks = None
        with th.no_grad():
            tensors = {key: th.as_tensor(value) for key, value in observation.items()}
            actions = model.policy(tensors, action_masks=masks)[0].numpy()
        deciding += time.perf_counter() - before
        observation = venv.step(actions)[0]
    spent = time.perf_counter() - started
    venv.close()
    return steps / spent, deciding / spent


def updates() -> float:
    """Decisions per second of PPO's updates alone (4 epochs over 8,192 decisions)."""
    made = config("in-process", 1)
    env = SimulatorTask(made).make_env()
    model = build_model(made, env.observation_space, env.action_space)
    size, total = made.on_policy.batch_size, 8192
    batch = {k: th.rand(size, *s.shape) for k, s in env.observation_space.items()}
    batch["mask"] = th.ones_like(batch["mask"])
    actions = model.policy.get_distribution(batch).sample()
    started = time.perf_counter()
    for _ in range(made.on_policy.n_epochs * total // size):
        values, log_prob, entropy = model.policy.evaluate_actions(batch, actions)
        model.policy.optimizer.zero_grad()
        (values.mean() - log_prob.mean() - entropy.mean()).backward()
        model.policy.optimizer.step()
    return total / (time.perf_counter() - started)


def main() -> None:
    """Print the table."""
    th.set_num_threads(1)
    print(f"one environment, index scheduler       {environment():8.0f}")
    for vec, num_envs in (("in-process", 8), ("subproc", 2), ("subproc", 4), ("subproc", 8)):
        speed, share = rollouts(vec, num_envs)
        print(f"rollout, {num_envs} x {vec:11}                {speed:8.0f}   policy {share:.0%} of the time")
    print(f"PPO updates alone, 4 epochs            {updates():8.0f}")


if __name__ == "__main__":
    main()
