"""The house keeps its order: rooms import only from rooms below, and learning stays in `agents/`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "splitgym"

ROOMS = (
    ("__init__", "__main__", "cli"),
    ("measuring",),
    ("router",),
    ("policy",),
    ("provisioning",),
    ("evaluation",),
    ("envs",),
    ("sim",),
    ("observation",),
    ("schedulers",),
    ("view", "cluster", "saturation"),
    ("slo", "metrics"),
    ("trace", "profile"),
    ("scale",),
    ("config", "types", "errors", "resources", "compile_cache"),
)
"""Top to bottom. What stands on one line is one room."""

LEVEL = {name: depth for depth, room in enumerate(ROOMS) for name in room}
LEARNING = {"torch", "stable_baselines3", "sb3_contrib", "agents"}
HOOK = ("cli/learning.py", "agents.cli")
"""The one late import: the command line adds the learning commands when it runs from a checkout."""

BY_NUMBA = ("njit", "overload", "compiled", "inlined", "with_schedulers")
"""Decorators of functions that Numba types by itself (the last two are of `splitgym/sim/compiled`)."""

TEXT = {".py", ".toml", ".txt", ".md", ".yaml", ".yml", ".json", ".csv", ".sh", ".cfg", ""}
SKIP = {".git", ".venv", ".venv-vllm", "runs", "build", "dist", "__pycache__", ".hypothesis"}


def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file of the package is in."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import statement and every `importlib.import_module("...")` in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if base == "splitgym" and is_module(full) else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def misplaced(path: Path) -> list[str]:
    """Imports of a file that reach up."""
    room = room_of(path)
    found = []
    for line, module in imports(path):
        parts = module.split(".")
        if parts[0] != "splitgym":
            continue
        target = parts[1] if len(parts) > 1 else "__init__"
        if target != room and LEVEL[target] < LEVEL[room]:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {module}: {target} is above {room}")
    return found


def test_every_file_is_in_a_known_room() -> None:
    unknown = {room_of(p) for p in package_files()} - LEVEL.keys()
    assert not unknown, f"no place in the order of rooms for {sorted(unknown)}"


@pytest.mark.parametrize("path", package_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_rooms_below(path: Path) -> None:
    assert not misplaced(path)


@pytest.mark.parametrize("path", package_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_package_never_imports_learning(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    found = [
        f"line {line}: {module}"
        for line, module in imports(path)
        if module.split(".")[0] in LEARNING and (relative, module) != HOOK
    ]
    assert not found, f"{relative} imports what only agents/ may: {found}"


@pytest.mark.parametrize(
    "path",
    [*package_files(), *sorted((ROOT / "agents").rglob("*.py"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_functions_are_annotated_unless_compiled(path: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any(word in ast.unparse(d) for d in node.decorator_list for word in BY_NUMBA):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        if bare or (node.returns is None and node.name != "__init__"):
            missing.append(f"{node.name} (line {node.lineno})")
    assert not missing, f"{path.relative_to(ROOT)}: no annotations on {missing}"


def test_nothing_names_the_folder_beside_the_checkout() -> None:
    name = "/".join(["..", "shared"])
    found = []
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT)
        if not path.is_file() or SKIP & set(inside.parts) or path.suffix not in TEXT:
            continue
        if name in path.read_text(errors="replace") and inside != Path(".ci/run"):
            found.append(str(inside))
    assert not found, f"only .ci/run may name {name}: {found}"


def test_the_checks_see_what_they_forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "splitgym"
    (package / "sim").mkdir(parents=True)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", package)
    (package / "envs").mkdir()
    for text in (
        "from splitgym import envs",
        "import splitgym.envs.routing",
        "from ..envs import routing",
        "import importlib\nimportlib.import_module('splitgym.envs')",
    ):
        path = package / "sim" / "engine.py"
        path.write_text(text)
        assert misplaced(path), text
    path.write_text("from splitgym.types import Pool")
    assert not misplaced(path)


def test_package_imports_without_learning_libraries() -> None:
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(LEARNING)!r}:
            raise ModuleNotFoundError(f"no {{name}} here", name=name)

sys.meta_path.insert(0, Absent())
import splitgym.cli, splitgym.evaluation, splitgym.envs, splitgym.sim.simpy_engine
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
