"""Runs on a Ray cluster: the same results as here, and none is lost when a worker dies."""

import os
import signal
import socket
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from splitgym import cli, scale
from splitgym.errors import ConfigError, SplitgymError
from splitgym.evaluation import contender, evaluate, parse, sweep
from splitgym.provisioning import (
    Problem,
    Runs,
    curves,
    failures,
    most_rate,
    parse_budget,
    parse_design,
    parse_designs,
    sources_of,
)
from splitgym.scale import processes, ray_tasks, workers_for
from splitgym.trace import load
from tests import terminal

SMALL = parse("poisson:azure-conv-synth@1", duration_s=6, warmup_s=1, part="all")


needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason='Ray is not installed: pip install "splitgym[scale]"'
)


@needs_ray
def test_a_search_finds_the_same_as_here(ray_cluster: str) -> None:
    problem = Problem("llama2-70b", SMALL, tolerance=0.25, engine="simpy")
    designs, fixed = parse_designs("Splitwise-HH"), parse_designs("h100-80gb:1P+h100-80gb:1T")
    budget = parse_budget("count=3", "llama2-70b")
    with workers_for(ray_cluster, None) as map:
        there = Runs(map, sources=sources_of([SMALL]))
        here = Runs()
        assert most_rate(problem, designs, budget, there) == most_rate(problem, designs, budget, here)
        assert there.count == here.count > 0
        assert repr(curves(problem, fixed, [2.0, 40.0], there)) == repr(
            curves(problem, fixed, [2.0, 40.0], here)
        )


@needs_ray
def test_an_evaluation_and_a_sweep_find_the_same_as_here(ray_cluster: str) -> None:
    grid = sweep.variants(["h100-80gb:1P1T", "h100-80gb:2P1T"], ["llama2-70b"])
    entrants = [contender("index"), contender(lambda view, request: (0, 1), name="mine")]
    load = replace(SMALL, rate_per_s=4.0)
    with workers_for(ray_cluster, None) as map:
        rows = sweep.sweep(grid, lambda config: entrants, [load], [0, 1], map=map)
        there = evaluate(entrants, grid[0].config, [load], [0, 1], map=map)
    assert repr(rows) == repr(sweep.sweep(grid, lambda config: entrants, [load], [0, 1]))
    assert repr(there.rows()) == repr(evaluate(entrants, grid[0].config, [load], [0, 1]).rows())


@needs_ray
def test_results_come_in_order_and_from_both_nodes(ray_cluster: str) -> None:
    def where(task: int) -> tuple[int, str]:
        import time

        import ray

        time.sleep(0.05 * (5 - task % 5))
        return task, ray.get_runtime_context().get_node_id()

    with ray_tasks(ray_cluster) as map:
        found = list(map(where, range(40)))
        assert list(map(where, [])) == []
    assert [task for task, _ in found] == list(range(40))
    assert len({node for _, node in found}) == 2


@needs_ray
def test_a_dead_worker_loses_nothing(ray_cluster: str, tmp_path: Path) -> None:
    def dies_once(task: int) -> int:
        mark = tmp_path / str(task)
        with mark.open("a") as attempts:
            attempts.write("x")
        if task % 4 == 1 and len(mark.read_text()) == 1:
            os._exit(1)
        return task * task

    with ray_tasks(ray_cluster) as map:
        assert list(map(dies_once, range(10))) == [task * task for task in range(10)]
    attempts = [len((tmp_path / str(task)).read_text()) for task in range(10)]
    assert all(n >= 1 + (task % 4 == 1) for task, n in enumerate(attempts))


@needs_ray
def test_a_worker_that_always_dies_is_one_sentence(ray_cluster: str) -> None:
    def dies(task: int) -> None:
        os._exit(1)

    with (
        ray_tasks(ray_cluster, max_retries=1) as map,
        pytest.raises(SplitgymError, match="Ray gave up on a run"),
    ):
        list(map(dies, [0]))


@needs_ray
def test_errors_of_a_task_are_those_of_a_local_map(ray_cluster: str) -> None:
    task = Problem("llama2-70b", SMALL, engine="simpy").task(parse_design("Splitwise-HH"), (1, 1), 2.0)
    missing = replace(task, workload=parse("poisson:no-such-trace@1", part="all"))
    with pytest.raises(SplitgymError) as here:
        failures(missing)
    with ray_tasks(ray_cluster) as map, pytest.raises(SplitgymError) as there:
        list(map(failures, [task, missing]))
    assert type(there.value) is type(here.value) and str(there.value) == str(here.value)


@needs_ray
def test_traces_of_this_machine_go_along(ray_cluster: str) -> None:
    trace = load("azure-conv-synth")
    task = Problem("llama2-70b", SMALL, engine="simpy").task(parse_design("Splitwise-HH"), (1, 1), 2.0)
    elsewhere = replace(task, workload=replace(task.workload, sources=("only-here",)))
    with ray_tasks(ray_cluster) as map:
        longer = replace(trace, output_tokens=np.full_like(trace.output_tokens, 9))
        for sent in (trace, longer):
            found = list(Runs(map, sources={"only-here": sent}).apply(failures, [elsewhere]))
            assert found == [failures(elsewhere, {"only-here": sent})]


@needs_ray
def test_another_splitgym_is_refused(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "fingerprint", lambda: "another")
    with ray_tasks(ray_cluster) as map, pytest.raises(ConfigError, match="with another splitgym"):
        list(map(abs, [1]))


@needs_ray
def test_an_open_connection_is_used_and_left_open(ray_cluster: str) -> None:
    import ray

    ray.init(ray_cluster, log_to_driver=False)
    try:
        with ray_tasks("auto") as map:
            assert list(map(abs, [-1, -2])) == [1, 2]
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@needs_ray
def test_addresses_that_cannot_be_used(ray_loopback: None) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"no answer from 127.0.0.1:{port}"),
            ray_tasks(f"localhost:{port}"),
        ):
            pass
    with pytest.raises(ConfigError, match="expected HOST:PORT"), ray_tasks("somewhere"):
        pass
    with pytest.raises(ConfigError, match="has its own number"), workers_for("127.0.0.1:1", 2):
        pass


def test_without_ray_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["splitgym", "provision", "--budget", "count=2", "--ray", "local"])
    monkeypatch.setattr(cli, "add_learning_commands", lambda to: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and 'pip install "splitgym[scale]"' in lines[0]


def test_local_processes() -> None:
    for workers in (1, 2):
        with processes(workers) as map:
            assert list(map(abs, [-3, 2, -1])) == [3, 2, 1]


STARTING = """import time
from splitgym.scale import processes

if __name__ == "__main__":
    try:
        with processes(2) as apply:
            print("open", flush=True)
            list(apply(abs, range(50)))
            time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks")
def test_an_interrupt_while_workers_start_ends_the_work_quietly(tmp_path: Path) -> None:
    script = tmp_path / "starting.py"
    script.write_text(STARTING)
    process = terminal.start([sys.executable, str(script)])
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=120) == ("interrupted\n", "")
    finally:
        process.kill()
