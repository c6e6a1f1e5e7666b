"""`splitgym profile torch`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from splitgym.cli.measure import watts
from splitgym.cli.options import AsJson, Force, make_folder, progress, refuse_to_replace
from splitgym.errors import ConfigError, ProfileError


def profile_torch(
    shape: Annotated[
        str, typer.Option(help="Dimensions by name: llama-3.1-8b or qwen2.5-32b.")
    ] = "llama-3.1-8b",
    config: Annotated[Path | None, typer.Option(help="Dimensions from a config.json instead.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Instead of the shape's.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Instead of the shape's.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Instead of the shape's.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Instead of the shape's.")] = None,
    head_dim: Annotated[int | None, typer.Option(min=2, help="Instead of the shape's.")] = None,
    intermediate: Annotated[int | None, typer.Option(min=1, help="Instead of the shape's.")] = None,
    vocab: Annotated[int | None, typer.Option(min=1, help="Instead of the shape's.")] = None,
    model: Annotated[str, typer.Option(help="What the profile calls the model.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Profile to write.")] = Path("profile.json"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of PyTorch on the CPU.")] = None,
    name: Annotated[str, typer.Option(help="What tables call the machine.")] = "local",
    machine: Annotated[str | None, typer.Option(help="Published specs: a machine type, or a file.")] = None,
    power: Annotated[str, typer.Option(help="IDLE,PROMPT,TOKEN watts; default assumed.")] = "",
    repeats: Annotated[int, typer.Option(help="Runs of each step.")] = 5,
    max_prompt: Annotated[int, typer.Option(help="Longest prompt.")] = 8192,
    max_batch: Annotated[int, typer.Option(help="Most decodes at once.")] = 64,
    max_seconds: Annotated[float, typer.Option(help="Seconds in all.")] = 900.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Time a transformer of given dimensions in PyTorch on this machine. Plain PyTorch: this is not vLLM.

    Example: splitgym profile torch --shape llama-3.1-8b --device cuda --out mine.json
    """
    import torch

    from agents import torch_profile
    from splitgym.measuring.plan import Limits
    from splitgym.profile import measured_file
    from splitgym.profile.dense import PRESETS, from_config
    from splitgym.profile.specs import find_machine

    if config is None and shape not in PRESETS:
        raise ConfigError(
            f"shape {shape!r}: choose one of {', '.join(PRESETS)}, or give --config config.json"
        )
    found = PRESETS[shape] if config is None else from_config(config)
    given = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": intermediate,
        "vocabulary": vocab,
    }
    changed = {key: value for key, value in given.items() if value is not None}
    label = model or (f"{found.name}-changed" if changed else found.name)
    found = replace(found, name=label, **changed)  # type: ignore[arg-type]
    if threads is not None:
        torch.set_num_threads(threads)
    where = torch_profile.Device.find(device, dtype)
    base, spent = find_machine(machine), watts(power)
    found = torch_profile.shape_on(found, where)
    limits = Limits(seconds=max_seconds, repeats=repeats, max_prompt=max_prompt, max_batch=max_batch)
    plan = torch_profile.plan_for(found, where, limits)
    if dry_run:
        print(f"{found.name}, {found.parameters / 1e9:.3g} billion weights, {where.dtype}, on {where.name}")
        print("\n".join(plan.lines()[:-1] if not plan.left_out else plan.lines()))
        return
    refuse_to_replace(out, force)
    make_folder(out.parent)
    with progress("timing", None) as (bar, task):

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        samples, stopped = torch_profile.measure(found, where, plan, tell)
    if stopped:
        raise ProfileError(f"{stopped}: nothing was written; raise --max-seconds or lower --max-prompt")
    data, fitted = torch_profile.profile_content(found, where, samples, name=name, base=base, power_w=spent)
    measured_file.write(out, data)
    provenance = data["provenance"]
    if as_json:
        print(json.dumps({"profile": str(out), "model": found.name, **provenance}, indent=1))
        return
    print(f"note: {torch_profile.NOT_VLLM}")
    print(f"prompt: {provenance['prompt_error']}")
    print(f"token:  {provenance['token_error']}")
    print(f"mixed:  factor {fitted.mixed_factor:.3f}; {provenance['mixed']}")
    print(f"{out}: use it as\n  --model {found.name} --cluster {out}/tp1:1P1T")
