"""Does the wheel stand alone? Builds it, installs it in a fresh environment without torch, steps each env.

Run by `make test` (not by pytest: it installs packages). Everything happens in a temporary folder away from
the checkout, so nothing that is only in the checkout can help.
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 100

INSIDE = f"""
import importlib.util
import sys
from pathlib import Path

import gymnasium
import numpy as np
import splitgym

home = Path(splitgym.__file__).resolve()
assert Path(sys.prefix).resolve() in home.parents, f"splitgym comes from {{home}}"
for name in ("torch", "stable_baselines3", "agents"):
    assert importlib.util.find_spec(name) is None, f"{{name}} is importable: the check proves nothing"

for name in ("Routing", "PoolSizing", "Joint"):
    env = gymnasium.make(f"splitgym/{{name}}-v0")
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    episodes = 0
    for _ in range({STEPS}):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert np.isfinite(reward)
        if terminated or truncated:
            episodes += 1
            observation, info = env.reset()
    env.close()
    print(f"splitgym/{{name}}-v0: {STEPS} steps, {{episodes}} episodes ended")
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command away from the checkout's import path; stop the check where it fails."""
    own = ("PYTHONPATH", "VIRTUAL_ENV", "SPLITGYM_DATA", "SPLITGYM_CACHE")
    env = {k: v for k, v in os.environ.items() if k not in own}
    subprocess.run([str(c) for c in command], cwd=cwd, env=env, check=True)


def check_contents(wheel: Path) -> None:
    """The wheel holds `splitgym` with its data, and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    roots = {n.split("/")[0] for n in names}
    foreign = {r for r in roots if r != "splitgym" and not r.endswith(".dist-info")}
    assert not foreign, f"the wheel also holds {sorted(foreign)}"
    for kind in ("profiles", "traces"):
        files = [n for n in names if n.startswith(f"splitgym/data/{kind}/")]
        assert files, f"the wheel lacks splitgym/data/{kind}"
        assert not [n for n in files if n.endswith(".py")], f"scripts in splitgym/data/{kind}"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="splitgym-wheel-") as name:
        away = Path(name)
        pip = (sys.executable, "-m", "pip")
        run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", away, ROOT, cwd=away)
        (wheel,) = away.glob("*.whl")
        check_contents(wheel)
        venv.create(away / "venv", with_pip=True)
        python = away / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        run(python, "-m", "pip", "install", "--quiet", wheel, cwd=away)
        run(python, "-c", INSIDE, cwd=away)
        run(python.with_name("splitgym"), "--help", cwd=away)
    print(f"wheel check passed: {wheel.name}")


if __name__ == "__main__":
    main()
