"""Threads that step a fleet: every environment once a round, awake or asleep, and none is left behind."""

import gc
import threading
import time

import numpy as np
import pytest

from splitgym.envs import RoutingEnv
from splitgym.envs.fleet import Fleet
from splitgym.envs.fleet import threads as room
from splitgym.sim.compiled.reach import IN_PYTHON

pytestmark = pytest.mark.skipif(IN_PYTHON, reason="without Numba there is one thread")


@pytest.fixture(autouse=True)
def every_thread_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LEAST_SHARE", 1)


def make(threads: int, num_envs: int = 7) -> Fleet:
    env = RoutingEnv(
        cluster="h100-80gb:2P2T", trace="azure-conv-synth", rate_per_s=20.0, episode_s=20.0, warmup_s=1.0
    )
    fleet = Fleet(env, num_envs, threads)
    fleet.begin(np.arange(num_envs), {i: i for i in range(num_envs)})
    return fleet


@pytest.mark.parametrize("threads", [2, 3])
def test_rounds_find_threads_awake_and_asleep(threads: int) -> None:
    alone, shared = make(1), make(threads)
    rng = np.random.default_rng(0)
    for step in range(150):
        actions = rng.integers(0, 4, (7, 2))
        alone.step(actions)
        shared.step(actions)
        np.testing.assert_array_equal(alone.answered, shared.answered)
        for key, array in alone.observations.items():
            np.testing.assert_array_equal(array, shared.observations[key], err_msg=f"{step} {key}")
        if step % 3 == 0:  # around the time for which a thread looks out
            time.sleep(float(rng.uniform(0, 2)) * room.SPIN_S)
    assert shared._threads._wakers, "others have been there"
    alone.close()
    shared.close()


def others() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == room.NAME]


def ended() -> bool:
    for _ in range(100):
        if not others():
            return True
        time.sleep(0.05)
    return False


def test_threads_end_with_their_fleet() -> None:
    gc.collect()
    assert ended(), "of tests before"
    fleet = make(3)
    fleet.step(np.zeros((7, 2), np.int64))
    assert len(others()) == 2
    time.sleep(0.2)  # they sleep, and must be woken up to end
    fleet.close()
    assert ended()
    fleet.step(np.zeros((7, 2), np.int64))
    assert len(others()) == 2, "a later step starts new ones"
    time.sleep(0.2)
    del fleet
    gc.collect()
    assert ended(), "nobody closed it"


def test_an_idle_thread_sleeps() -> None:
    fleet = make(2)
    fleet.step(np.zeros((7, 2), np.int64))
    time.sleep(0.2)
    spent = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - spent < 0.1
    fleet.close()
