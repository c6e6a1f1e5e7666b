"""`splitgym profile measure`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitgym.cli.options import AsJson, Force, make_folder, numbers, progress, refuse_to_replace
from splitgym.errors import ConfigError, ProfileError

if TYPE_CHECKING:
    from splitgym.measuring.client import About
    from splitgym.measuring.run import Outcome
    from splitgym.profile.measured import Fit


def profile_measure(
    url: Annotated[
        str, typer.Option(help="Server that computes both phases, such as http://10.0.0.10:8000.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Profile to write.")] = Path("profile.json"),
    prompt_url: Annotated[
        str | None, typer.Option(help="With --token-url: measure KV transfers from this server ...")
    ] = None,
    token_url: Annotated[str | None, typer.Option(help="... to this one (NIXL connector on both).")] = None,
    served_model: Annotated[str, typer.Option(help="What requests call the model; default the first.")] = "",
    model: Annotated[str | None, typer.Option(help="Model whose dimensions it has.")] = None,
    config: Annotated[Path | None, typer.Option(help="Its config.json, in place of a known model.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Published specs: a machine type, or a file with its fields.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="That hold the model; default the machine's, or 1.")
    ] = None,
    name: Annotated[str, typer.Option(help="What tables call the machine.")] = "measured",
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="KV capacity, if the server hides it.")] = None,
    power: Annotated[str, typer.Option(help="IDLE,PROMPT,TOKEN watts of all GPUs; default assumed.")] = "",
    measurements: Annotated[
        Path | None, typer.Option(help="File of the single runs; default beside the profile.")
    ] = None,
    max_requests: Annotated[int, typer.Option(help="Requests in all.")] = 2000,
    max_seconds: Annotated[float, typer.Option(help="Seconds in all.")] = 900.0,
    repeats: Annotated[
        int, typer.Option(help="Runs of each step; unsteady ones get up to three times as many.")
    ] = 3,
    output_tokens: Annotated[
        str, typer.Option(help="Output lengths; the first in every token step, the others over one prompt.")
    ] = "16,64,256",
    max_prompt: Annotated[int, typer.Option(help="Longest prompt.")] = 8192,
    max_batch: Annotated[int, typer.Option(help="Most requests at once.")] = 64,
    api_key: Annotated[str | None, typer.Option(envvar="SPLITGYM_API_KEY", help="Bearer token.")] = None,
    shared: Annotated[bool, typer.Option("--shared", help="Measure although others use the server.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin the measurements anew.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure a live vLLM server into a profile. What was stopped goes on with the same command.

    Example: splitgym profile measure --url http://10.0.0.10:8000 --model llama2-70b --out mine.json --dry-run
    """
    _needs_router()
    from splitgym.measuring import write
    from splitgym.measuring.plan import Limits
    from splitgym.measuring.run import Servers
    from splitgym.profile import measured_file
    from splitgym.profile.specs import find_machine

    servers = Servers(url, prompt_url, token_url, api_key, served_model)
    outputs = output_lengths(output_tokens)
    limits = Limits(
        max_requests, max_seconds, repeats, outputs[0], max_prompt, max_batch, long_outputs=outputs[1:]
    )
    spent = watts(power)
    base = find_machine(machine)

    def look(about: "About") -> None:
        write.find_model(about, model, config)
        write.capacity(about, kv_tokens)

    if dry_run:
        outcome = _run(servers, limits, None, look=look)
        print(json.dumps(_plan(outcome), indent=1) if as_json else "\n".join(outcome.plan.lines()))
        return
    refuse_to_replace(out, force)
    make_folder(out.parent)
    path = measurements or out.with_name(out.stem + ".measurements.jsonl")
    outcome = _whole(_run(servers, limits, path, fresh=fresh, shared=shared, look=look), path)
    found = write.find_model(outcome.about, model, config)
    data, fitted = write.profile_content(
        outcome,
        found,
        machine=base,
        gpus=gpus or (base.gpus if base is not None else 1),
        name=name,
        kv_tokens=kv_tokens,
        power_w=spent,
    )
    measured_file.write(out, data)
    _say(out, data, fitted, outcome, as_json)


def _needs_router() -> None:
    """Say what to install where the [router] extra is missing."""
    try:
        import splitgym.measuring.run  # noqa: F401
    except ModuleNotFoundError as error:
        need = error.name
        raise ConfigError(
            f"`splitgym profile measure` needs {need}: pip install 'splitgym[router]'"
        ) from None


def _whole(outcome: "Outcome", path: Path) -> "Outcome":
    """An outcome of which nothing is missing.

    Raises:
        ProfileError: it was stopped early.
    """
    assert outcome.store is not None
    if outcome.stopped:
        raise ProfileError(
            f"{outcome.stopped}: {len(outcome.store.runs)} runs are in {path}, no profile is written yet; "
            "the same command goes on"
        )
    return outcome


def _run(servers: Any, limits: Any, path: Path | None, **options: Any) -> "Outcome":
    import asyncio

    from splitgym.measuring.run import measure

    with progress("measuring", None, f"{path} holds what was measured; the same command goes on") as (
        bar,
        task,
    ):

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what or "measured")

        return asyncio.run(measure(servers, limits, path, tell=tell, **options))


def output_lengths(text: str) -> tuple[int, ...]:
    """The numbers of --output-tokens, shortest first."""
    found = numbers(text, "--output-tokens", "16,64,256")
    if not found or any(n != int(n) for n in found):
        raise ConfigError(f"--output-tokens {text!r}: expected whole numbers such as 16,64,256")
    return tuple(sorted({int(n) for n in found}))


def watts(text: str) -> tuple[float, float, float] | None:
    """The three numbers of --power; None where it was not given."""
    if not text:
        return None
    found = numbers(text, "--power", "300,2500,1800")
    if len(found) != 3:
        raise ConfigError(f"--power {text!r}: expected three numbers, IDLE,PROMPT,TOKEN")
    return found[0], found[1], found[2]


def _plan(outcome: "Outcome") -> dict[str, Any]:
    plan = outcome.plan
    return {
        "model": outcome.about.model,
        "server": outcome.about.version,
        "kv_tokens": outcome.about.capacity_tokens,
        "steps": [step.name for step in plan.steps],
        "repeats": plan.limits.repeats,
        "requests": plan.all_requests,
        "prompt_tokens": plan.all_prompt_tokens,
        "left_out": list(plan.left_out),
    }


def _say(out: Path, data: dict[str, Any], fitted: "Fit", outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        found = {
            "profile": str(out),
            "requests": outcome.requests,
            "seconds": round(outcome.seconds, 3),
            **{key: data["provenance"][key] for key in data["provenance"] if "error" in key},
        }
        print(json.dumps(found, indent=1))
        return
    for note in outcome.store.notes if outcome.store is not None else []:
        print(f"note: {note}")
    provenance = data["provenance"]
    print(f"prompt:   {provenance['prompt_error']}")
    print(f"token:    {provenance['token_error']}")
    print(f"mixed:    factor {fitted.mixed_factor:.3f}; {provenance['mixed']}")
    print(f"transfer: {provenance['transfer']}")
    model = data["model"] if isinstance(data["model"], str) else data["model"]["name"]
    print(f"{out}: {outcome.requests} requests in {outcome.seconds:.1f} s; use it as")
    print(f"  --model {model} --cluster {out}/tp{data['tensor_parallel']}:1P1T")
