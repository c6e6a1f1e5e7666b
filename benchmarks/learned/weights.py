"""Weights found by search, kept as small files beside this one, so that the benchmark needs no training.

    python -m benchmarks.learned.weights RUN NAME "the command that made RUN" [latest]

writes `weights/NAME.json` from the best model of a run folder of `es` or `cem`, or the latest, with the
generation that the model is of. Of a network, `splitgym export RUN --out weights/NAME` writes a bundle.
"""

import json
import sys
from pathlib import Path
from typing import Any

from splitgym.errors import ConfigError
from splitgym.policy import SchedulerSpec
from splitgym.policy.named import make_sizing
from splitgym.schedulers import CompiledRouting, CompiledSizing, Residual

FOLDER = Path(__file__).parent / "weights"


def read(name: str) -> Residual | None:
    """The kept weights as a scheduler; None where there are none of that name.

    Raises:
        ConfigError: a file that holds something else.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    try:
        weights = json.loads(path.read_text())["weights"]
        return Residual(weights=tuple(float(w) for w in weights), label=name)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no kept weights ({error}); write it again from the run folder") from None


def read_pair(name: str) -> tuple[CompiledRouting | None, CompiledSizing | None]:
    """Kept weights as a router and a sizer; None for what the agent does not decide.

    Raises:
        ConfigError: see `read`.
    """
    path = FOLDER / f"{name}.json"
    try:
        sizing = json.loads(path.read_text()).get("sizing")
        sizer = None if sizing is None else make_sizing(SchedulerSpec(sizing["name"], sizing["options"]))
        routes = "weights" in json.loads(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no kept weights ({error}); write it again from the run folder") from None
    return (read(name) if routes else None), sizer


def names(prefix: str) -> list[str]:
    """Kept weights whose name begins so, in order."""
    return sorted(path.stem for path in FOLDER.glob(f"{prefix}*.json"))


def bundles(prefix: str) -> list[Path]:
    """Kept networks, as policy bundles, whose name begins so, in order."""
    return sorted(path.parent for path in FOLDER.glob(f"{prefix}*/manifest.json"))


def keep(run: str | Path, name: str, command: str, which: str = "best") -> Path:
    """Write the best or the latest model of a run folder, with where it comes from.

    Raises:
        ConfigError: no run of `es` or `cem`, or one without a model.
    """
    from agents.evaluation import load_config
    from agents.evolution import load_evolved, newest_model
    from agents.routers import spec_of
    from agents.runs import RunFolder

    config, folder = load_config(run), RunFolder(run)
    model = newest_model(folder, which).parent
    if model == folder.best:
        generation = int(json.loads((model / "metrics.json").read_text())["steps"])
    else:
        generation = int(model.name.removeprefix("step-"))
    found: dict[str, Any] = {
        "algo": config.algo,
        "seed": config.seed,
        "command": command,
        "generation": generation,
    }
    judged = {int(row["steps"]): row for row in folder.evaluations()}.get(generation)
    if judged is not None:  # the latest may be of a generation that no evaluation saw
        keys = ("goodput", "fitness", "tail", "ttft_slowdown_p99")
        found["validation"] = {key: round(float(judged[key]), 4) for key in keys}
    routing, sizing = load_evolved(run, which)
    if isinstance(routing, Residual):
        found["weights"] = [float(w) for w in routing.weights]
    if sizing is not None:
        spec = spec_of(sizing)
        found["sizing"] = {"name": spec.name, "options": spec.options}
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(found, indent=0) + "\n")
    return path


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    print(keep(*sys.argv[1:]))
