"""Commands that take a policy to where requests are: `export`, `route`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from splitgym.cli.learning import learning_commands
from splitgym.errors import ConfigError, SplitgymError


def export(
    run: Annotated[str, typer.Argument(help="Run folder of `splitgym train`.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the bundle.")] = Path("bundle"),
    heuristic: Annotated[
        str, typer.Option(help="Instead of a run: ROUTING, ROUTING+SIZING or +SIZING, such as splitwise.")
    ] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the heuristic's routing; repeatable.")
    ] = None,
    which: Annotated[str, typer.Option(help="Of a run: best or latest.")] = "best",
    name: Annotated[str, typer.Option(help="What tables call it.")] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="Write policy.onnx instead of NumPy weights.")] = False,
) -> None:
    """Write a trained agent or a heuristic as a policy bundle, which decides without torch.

    Example: splitgym export --heuristic index-tuned --out bundle
    """
    from splitgym import policy

    if bool(run) == bool(heuristic):
        raise ConfigError("name a run folder, or a scheduler with --heuristic, and not both")
    if heuristic:
        made = policy.export_heuristic(heuristic, out, options=_options(option or []), name=name)
    else:
        if which not in ("best", "latest"):
            raise ConfigError(f"--which {which}: expected best or latest")
        if policy.is_bundle(run):
            raise ConfigError(f"{run} is a policy bundle already")
        found = learning_commands()
        if isinstance(found, str):
            raise SplitgymError(f"`splitgym export {run}` {found}")
        made = found.export(run, out, which=which, name=name, onnx=onnx)
    print(
        f"{made.name}: {made.manifest.action.kind}, {made.manifest.architecture.kind}, sha256 {made.sha256}"
    )
    print(f"bundle   {out}")
    print(f"compare  splitgym evaluate --policies splitwise,{out}")


def route(
    config: Annotated[Path, typer.Option("--config", help="YAML: see docs/deploy.md.")],
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Decide with the heuristic; log what the policy would do.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Read and check everything, then stop.")] = False,
) -> None:
    """Route OpenAI-compatible requests to vLLM servers: prompt here, tokens there, roles changing.

    Example: splitgym route --config router.yaml --check
    """
    try:
        from splitgym.router import app
        from splitgym.router.config import load_config
    except ModuleNotFoundError as error:
        raise SplitgymError(f"`splitgym route` needs {error.name}: pip install 'splitgym[router]'") from None
    found = load_config(config)
    if shadow:
        found = replace(found, policy=replace(found.policy, shadow=True))
    if check:
        app.Router(found).parts.log.close()
        print(f"{config} is fine: {len(found.servers)} servers, policy {found.policy.routing}")
        return
    if not app.run(found, lambda text: print(text, flush=True)):
        raise SplitgymError("requests were still in progress after limits.shutdown_s, and were cut off")


def _options(texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE, the values as YAML."""
    import yaml

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not key:
            raise ConfigError(f"--option {text!r}: expected NAME=VALUE")
    return found
