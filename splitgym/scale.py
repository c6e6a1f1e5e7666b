"""Many independent runs at once: on the cores of this machine, or on a Ray cluster.

A `Map` applies a function to many tasks and gives the results in their order, so who uses one need not know
which it is: `map` itself, a pool of processes (`processes`), a cluster (`ray_tasks`), or what the command
line asked for (`workers_for`). The results are the same. Functions and tasks must pickle.
"""

import hashlib
import logging
import multiprocessing
import os
import platform
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from splitgym.errors import ConfigError, SplitgymError
from splitgym.resources import shipped

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to many tasks and gives the results in their order: `map`, a pool's, a cluster's."""

MAX_RETRIES = 5
"""How often a task starts again whose worker, or whose whole machine, died."""
ANSWERS_WITHIN_S = 10.0


def workers_for(
    ray: str | None, workers: int | None, tasks: int | None = None
) -> AbstractContextManager[Map]:
    """The `map` for the options `--ray` and `--workers`.

    Args:
        ray: address of a cluster, see `ray_tasks`; None for processes of this machine.
        workers: how many, None as many as there are cores. A running cluster has its own number.
        tasks: how many there will be, if known: no more processes of this machine than that.

    Raises:
        ConfigError: both are given, and the cluster is not `local`.
    """
    if ray is None:
        number = workers or os.cpu_count() or 1
        return processes(number if tasks is None else max(1, min(number, tasks)))
    return ray_tasks(ray, workers)


@contextmanager
def processes(workers: int | None = None) -> Iterator[Map]:
    """A `map` over so many processes (None: as many as cores); one worker is this process itself."""
    number = workers or os.cpu_count() or 1
    if number == 1:
        yield map
        return
    # Ctrl-C reaches every process of the terminal: this one ends the work, the workers finish their task.
    pool = ProcessPoolExecutor(
        number,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )

    def map_(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterable[Any]:
        with _interrupts_wait():
            return pool.map(function, tasks)

    try:
        yield map_
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back meanwhile, also for processes that start now.

    One that it ends before the initializer has run breaks its pool.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def threads(workers: int | None = None) -> Iterator[Map]:
    """A `map` over so many threads (None: as many as cores).

    The compiled engine works without Python's lock, so its runs share the cores, and nothing is started or
    copied. Only for schedulers that run inside it and keep no state between requests.
    """
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        yield pool.map


@contextmanager
def ray_tasks(address: str, workers: int | None = None, max_retries: int = MAX_RETRIES) -> Iterator[Map]:
    """A `map` over the CPUs of a Ray cluster; a task is one Ray task of one CPU.

    A task whose worker dies starts again elsewhere, and the others are not touched. What a task itself raises
    is raised here as it is. Every worker must have this very splitgym, so that results are those of this
    machine; it is checked.

    Args:
        address, workers: see `ray_connection`.
        max_retries: how often a task starts again, see above.

    Raises:
        ConfigError: see `ray_connection`; or a worker without this splitgym.
        SplitgymError: a task's worker died each time.
    """
    with ray_connection(address, workers):
        yield _ray_map(max_retries)


@contextmanager
def ray_connection(address: str, workers: int | None = None) -> Iterator[None]:
    """A connection to a Ray cluster. One that is already there is used, and left open.

    Args:
        address: `HOST:PORT` or `ray://HOST:PORT` of a running cluster, `auto` for the one that this machine
            (or `RAY_ADDRESS`) belongs to, `local` to start one on this machine and stop it afterwards.
        workers: CPUs of a `local` cluster; None for all.

    Raises:
        ConfigError: Ray is not installed, nothing answers at the address, or `workers` for a running cluster.
    """
    if find_spec("ray") is None:
        raise ConfigError('--ray needs Ray, which is not installed: pip install "splitgym[scale]"')
    if workers is not None and address != "local":
        raise ConfigError(
            f"--workers is for this machine, the cluster at {address} has its own number: leave it"
        )
    # Nobody is told that somebody simulates; who wants Ray's statistics can set it to 1.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    if address not in ("local", "auto"):
        _must_answer(address)
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(f"--ray {address}: {_first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray_map(max_retries: int) -> Map:
    """`map` by Ray tasks, all submitted at once.

    What is left when the caller stops ends with the connection. Nothing is cancelled one by one: `ray.cancel`
    of a task that is just finishing aborts the whole process (Ray 2.60, "task that was not pending").
    """
    import ray

    run = ray.remote(num_cpus=1, max_retries=max_retries, retry_exceptions=False)(_run)

    def map(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterable[Any]:
        shared = ray.put(function)  # once, however many tasks there are
        return results([run.remote(fingerprint(), shared, task) for task in tasks])

    def results(waiting: list[Any]) -> Iterator[Any]:
        waiting.reverse()
        while waiting:
            yield _result(waiting.pop())  # with the last reference goes the cluster's copy

    return map


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ModuleNotFoundError) and error.cause.name == "splitgym":
            raise ConfigError(_DIFFERS.format("without splitgym")) from error
        raise error.cause from error  # what the local map would raise
    except RayError as error:
        raise SplitgymError(
            f"Ray gave up on a run ({type(error).__name__}: {_first_line(error)}); runs that were kept in a "
            "--cache are not lost"
        ) from error


def _run(expected: str, function: Callable[[Any], Any], task: Any) -> Any:
    """On a worker."""
    must_be(expected)
    return function(task)


def must_be(expected: str) -> None:
    """Refuse to work where the code or its data are not those of the machine that asks.

    Raises:
        ConfigError: `fingerprint()` is another.
    """
    if fingerprint() != expected:
        raise ConfigError(_DIFFERS.format(f"on {platform.node()} with another splitgym, Python or NumPy"))


_DIFFERS = "there is a Ray worker {}: install on every machine what is installed on this one"


@cache
def fingerprint() -> str:
    """The same wherever the same runs have the same results: code, shipped data, Python and NumPy."""
    digest = hashlib.sha256(f"{platform.python_version_tuple()[:2]} {np.__version__}".encode())
    package = Path(__file__).resolve().parent
    files = [(package, path) for path in package.rglob("*.py")]
    for kind in ("profiles", "traces"):
        folder = shipped(kind)
        files += [(folder, p) for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    for root, path in sorted(files, key=lambda pair: (pair[0].name, str(pair[1].relative_to(pair[0])))):
        digest.update(f"{path.relative_to(root).as_posix()} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _must_answer(address: str) -> None:
    """Ray itself tries for minutes. It takes a loopback address for this machine's own outer one."""
    import ray.util

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--ray {address}: expected HOST:PORT, ray://HOST:PORT, auto or local")
    host = host.strip("[]")
    if host in ("127.0.0.1", "localhost", "::1") and not address.startswith("ray://"):
        host = ray.util.get_node_ip_address()
    try:
        socket.create_connection((host, int(port)), ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--ray {address}: no answer from {host}:{port} ({_first_line(error)}); "
            "`ray start --head` starts a cluster there, and --ray local one for this command"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
