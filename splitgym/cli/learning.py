"""What comes from the checkout's `agents/`: the commands that learn, and trained agents as policies."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import typer

from splitgym.config import ClusterConfig
from splitgym.errors import SplitgymError

if TYPE_CHECKING:
    from splitgym.evaluation import Contender

LEARNING_COMMANDS = ("train", "tune", "improve")


def add_learning_commands(to: typer.Typer) -> None:
    """Add `train` and its like where the checkout's `agents/` is there; elsewhere, say how to get them."""
    found = learning_commands()
    if isinstance(found, ModuleType):
        found.register(to)
        return
    groups = [(to, name, name) for name in LEARNING_COMMANDS]
    for group in to.registered_groups:
        if group.name == "profile" and group.typer_instance is not None:
            groups.append((group.typer_instance, "torch", "profile torch"))
    for where, name, full_name in groups:
        settings = {"ignore_unknown_options": True, "allow_extra_args": True}  # whatever else was typed
        command = where.command(
            name, help=f"(not available here: {found})", hidden=True, context_settings=settings
        )
        command(_unavailable(full_name, found))


def learning_commands() -> ModuleType | str:
    """The learning commands' module, or how to get it."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "agents" / "cli.py").is_file():
        return (
            "learns, and learning is used from a checkout of splitgym with its [train] extra: see the README"
        )
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    try:
        return importlib.import_module("agents.cli")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("agents", "splitgym"):
            raise
        return f"needs {error.name}: pip install -e '.[train]' in {checkout}"


def contender_of(text: str, cluster: ClusterConfig) -> "Contender":
    """A policy by name, of a bundle, or the agent of a run folder."""
    from splitgym import evaluation, policy, schedulers

    if text.startswith(evaluation.LOOKAHEAD):
        return evaluation.look_ahead(text, lambda name: contender_of(name, cluster))
    if text.startswith(evaluation.CLAIRVOYANT):
        return evaluation.clairvoyant(text, lambda name: contender_of(name, cluster))
    if policy.is_bundle(text):
        return policy.contender(text, cluster)

    known = {*schedulers.routing_names(), evaluation.VLLM}
    scheduler = re.split(r"[+@]", text)[0]
    if "/" not in text.partition("@")[0] and (text in known or not Path(text).is_dir()):
        if scheduler not in known:
            names, shipped = ", ".join(schedulers.routing_names()), ", ".join(policy.bundled_names())
            raise SplitgymError(
                f"policy {text!r} is no scheduler ({names}, {evaluation.VLLM}), no folder of a run or "
                f"a bundle, and no pretrained:NAME ({shipped})"
            )
        return evaluation.contender(text, cluster=cluster)
    found = learning_commands()
    if isinstance(found, str):
        raise SplitgymError(f"policy {text} is an agent, which {found}")
    agent: Contender = found.contender(text, cluster)
    return agent


def _unavailable(name: str, how: str) -> Callable[[], None]:
    def command() -> None:
        raise SplitgymError(f"`splitgym {name}` {how}")

    return command
