"""The shipped profiles are what profiles/fit.py makes of the measurements, and their stated errors hold."""

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from splitgym import profile as profiles
from splitgym.errors import ProfileError
from splitgym.profile import curves
from splitgym.resources import data_folder

FOLDER = Path(__file__).resolve().parent.parent / "profiles"
sys.path.insert(0, str(FOLDER))

import fit  # noqa: E402

DATA = (data_folder() or Path("unset")) / "splitwise-sim" / "perf_model.csv"
needs_data = pytest.mark.skipif(not DATA.is_file(), reason="SPLITGYM_DATA lacks splitwise-sim/perf_model.csv")


@pytest.fixture(scope="module")
def measured() -> dict[fit.Key, fit.Measured]:
    return fit.read(DATA)


@needs_data
def test_a_new_fit_equals_the_shipped_files(tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "fit.py"), "--data", str(DATA), "--out", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=True, cwd=FOLDER.parent, env=_env())
    assert sorted(p.stem for p in tmp_path.glob("*.json")) == profiles.names()
    for name in profiles.names():
        new, shipped = (json.loads((f / f"{name}.json").read_text()) for f in (tmp_path, FOLDER))
        assert new == shipped, name
    table = (FOLDER.parent / "docs" / "profiles.md").read_text()
    for line in done.stdout.splitlines()[2:]:
        assert line in table


def _env() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(FOLDER.parent)}


@needs_data
def test_held_out_errors(measured: dict[fit.Key, fit.Measured]) -> None:
    """Under 3 % wherever the measurements allow: not for llama2-70b on the A100 (docs/profiles.md)."""
    for key, m in measured.items():
        machine = profiles.machines()[key[1]].part(key[2])
        e = curves.errors(m.prompt_ms, m.token_ms, fit.roofline_slope(profiles.models()[key[0]], machine))
        assert e.token_held_out < 3.0, key
        if key[:2] != ("llama2-70b", "a100-80gb"):
            assert e.prompt_held_out < 3.0 and e.curve_held_out < 3.05, key
        assert e.least_possible <= e.curve_all < e.least_possible + 1.0, key


@needs_data
def test_loaded_profiles_against_the_raw_medians() -> None:
    """Read the CSV again, without the script: what the engines will use lies within the stated errors."""
    import csv

    prompt: dict[tuple, list[float]] = defaultdict(list)
    token: dict[tuple, list[float]] = defaultdict(list)
    with DATA.open() as file:
        for row in csv.DictReader(file):
            key = (row["model"], row["hardware"], int(row["tensor_parallel"]))
            point = (*key, int(row["prompt_size"]), int(row["batch_size"]))
            if key[2] == 2 and point[3:] == (512, 64):
                continue
            prompt[point].append(float(row["prompt_time"]) / 1e3)
            if row["token_size"] == "128":
                token[point].append(float(row["token_time"]) / 1e3)
    for name in profiles.names():
        model, machine, gpus = name.rsplit("_", 2)
        p = profiles.load(model, machine, int(gpus[2:]))
        mine = [q for q in prompt if q[:3] == (model, machine, int(gpus[2:]))]
        pe = [abs(p.prompt_time(q[3] * q[4]) / statistics.median(prompt[q]) - 1) for q in mine]
        te = [
            abs(p.token_time(q[4], q[3] * q[4]) / statistics.median(token[q]) - 1) for q in mine if q in token
        ]
        assert f"none held out: {100 * statistics.fmean(pe):.1f} %" in p.provenance["prompt_error"]
        assert f"none held out: {100 * statistics.fmean(te):.1f} %" in p.provenance["token_error"]


def test_middle_knots_lie_between_chord_and_tangents() -> None:
    assert curves.with_middles({1: 1.0, 4: 4.0}) == {1: 1.0, 2: 1.5, 4: 4.0}  # chord 2, not below the left: 1
    convex = curves.with_middles({1: 1.0, 2: 1.0, 8: 7.0, 16: 15.0})
    assert convex[4] == pytest.approx(3.0) and 1.0 <= convex[4] <= 7.0


def test_isotonic_pools_violators() -> None:
    assert curves.isotonic([1.0, 3.0, 2.0, 4.0], [1, 1, 1, 1]) == [1.0, 2.5, 2.5, 4.0]
    assert curves.isotonic([3.0, 1.0], [3, 1]) == [2.5, 2.5]


def test_a_held_out_point_cannot_influence_its_own_prediction() -> None:
    points = {(n, 1): n * 1.0 for n in (128, 256, 512, 1024, 2048)} | {(512, 2): 1024.0, (512, 4): 2048.0}
    token = {(n, 1): 10 + n / 1000 for n in (128, 512, 2048)} | {(512, b): 10.0 + b for b in (2, 4, 8)}
    e = curves.errors(points, token, 1e-6)
    assert e.prompt_held_out < 1e-9
    worse = curves.errors(points | {(512, 1): 2 * 512.0}, token, 1e-6)
    assert worse.prompt_held_out > 5


def test_noise_is_what_the_runs_of_a_point_differ_by() -> None:
    runs = {(n, 1): [n * f for f in (0.9, 0.9, 1.0, 1.1, 1.1)] for n in (128, 512, 2048)}
    exact = {p: [float(p[0])] * 5 for p in runs}
    assert curves.run_errors(exact) == curves.RunErrors(0.0, pytest.approx(0.0, abs=1e-9))
    e = curves.run_errors(runs)
    assert e.noise == pytest.approx(8.0)
    # The median of the other four: 1.05 for the two at 0.9, 1.0 for the middle one, 0.95 for the others.
    expected = (2 * (1.05 / 0.9 - 1) + 0 + 2 * (1 - 0.95 / 1.1)) / 5
    assert e.held_out == pytest.approx(100 * expected)


@needs_data
def test_the_least_error_and_the_noise_are_stated(measured: dict[fit.Key, fit.Measured]) -> None:
    for key, m in measured.items():
        e = curves.run_errors(m.prompt_runs)
        note = profiles.load(*key).provenance["prompt_noise"]
        assert f"median: {e.noise:.1f} %" in note and f"others: {e.held_out:.1f} %" in note
        assert e.noise < 3.0 and e.held_out < 4.0


def test_bad_measurements(tmp_path: Path) -> None:
    path = tmp_path / "perf.csv"
    with pytest.raises(ProfileError, match=r"perf.csv: cannot be read"):
        fit.read(path)
    path.write_text("model,hardware\na,b\n")
    with pytest.raises(ProfileError, match=r"perf.csv: not the measurements expected"):
        fit.read(path)
    path.write_text("model,hardware\n")
    with pytest.raises(ProfileError, match=r"perf.csv: no measurements"):
        fit.read(path)
