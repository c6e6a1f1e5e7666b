"""Numba's cache notices an edit in a file that a compiled function's file imports."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from splitgym import compile_cache

CALLER = """from splitgym.compile_cache import numba
from splitgym.schedulers.called import FACTOR, called


@numba.njit(cache=True)
def caller(x):
    return FACTOR * called(x)
"""
CALLED = """from splitgym.compile_cache import numba

FACTOR = {factor}


@numba.njit(cache=True)
def called(x):
    return x + {term}
"""
RUN = """import sys
from splitgym.schedulers.caller import caller
sys.stdout.write(f"{caller(1)} {sum(caller.stats.cache_hits.values())}")
"""


def run(root: Path) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    value, hits = done.stdout.split()
    return int(value), int(hits)


def test_edits_of_a_callee_and_of_a_constant_are_noticed(tmp_path: Path) -> None:
    without = shutil.ignore_patterns("*.nbi", "*.nbc")
    shutil.copytree(compile_cache.PACKAGE, tmp_path / "splitgym", ignore=without)
    room = tmp_path / "splitgym" / "schedulers"
    (room / "caller.py").write_text(CALLER)
    (room / "called.py").write_text(CALLED.format(factor=2, term=1))
    assert run(tmp_path) == (4, 0)
    assert run(tmp_path) == (4, 1), "unchanged code comes from the cache"
    (room / "called.py").write_text(CALLED.format(factor=2, term=10))
    assert run(tmp_path) == (22, 0)
    (room / "called.py").write_text(CALLED.format(factor=30, term=10))
    assert run(tmp_path) == (330, 0)


def test_stamps_follow_imports_but_not_into_data() -> None:
    decide = compile_cache.PACKAGE / "sim" / "compiled" / "decide.py"
    reached, new = set(), {decide}
    while new:
        reached |= new
        new = set().union(*map(compile_cache.imported, new)) - reached
    names = {path.relative_to(compile_cache.PACKAGE).as_posix() for path in reached}
    assert {"schedulers/predict.py", "schedulers/choose.py", "profile/tables.py", "types.py"} <= names
    assert not any(name.startswith("trace/") for name in names)


def test_all_that_compiles_goes_through_this_cache() -> None:
    plain = re.compile(r"^(import numba|from numba import)", re.MULTILINE)
    files = [path for path in compile_cache.PACKAGE.rglob("*.py") if plain.search(path.read_text())]
    assert files == [compile_cache.PACKAGE / "compile_cache.py"]
