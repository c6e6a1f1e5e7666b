"""From measurements to a profile file: which model it was, what the machine is, what is said about both."""

from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from splitgym.errors import ProfileError
from splitgym.measuring.client import About
from splitgym.measuring.run import Outcome
from splitgym.profile import MachineSpec, ModelSpec, models
from splitgym.profile.dense import from_config
from splitgym.profile.measured import Fit, fit
from splitgym.profile.measured_file import content, describe_machine


def find_model(about: About, name: str | None, config: Path | None) -> ModelSpec:
    """The model that was measured.

    Args:
        about: the server; its own name and path of the model are tried last.
        name: of `models.yaml`, or what a profile made with `config` is to call it.
        config: Hugging Face's config.json.

    Raises:
        ProfileError: nobody tells its dimensions.
    """
    known = models()
    if config is not None:
        return from_config(config, name or "").spec
    for candidate in (name, about.model, about.root) if name is None else (name,):
        if candidate in known:
            return known[str(candidate)]
    if name is not None:
        raise ProfileError(
            f"model {name!r}: choose one of {', '.join(known)}, or give its --config config.json"
        )
    folder = Path(about.root)
    if (folder / "config.json").is_file():
        return from_config(folder, about.model).spec
    raise ProfileError(
        f"the server calls its model {about.model!r}, whose dimensions are not known here: give --model NAME "
        f"({', '.join(known)}) or --config config.json"
    )


def capacity(about: About, given: int | None) -> int:
    """KV tokens that the server has room for.

    Raises:
        ProfileError: it does not tell, and nobody else does.
    """
    found = given or about.capacity_tokens
    if not found:
        raise ProfileError("the server does not tell the size of its KV cache: give --kv-tokens")
    return found


def profile_content(
    outcome: Outcome,
    model: ModelSpec,
    *,
    machine: MachineSpec | None,
    gpus: int,
    name: str,
    kv_tokens: int | None = None,
    power_w: tuple[float, float, float] | None = None,
) -> tuple[dict[str, Any], Fit]:
    """The profile file and the fit behind it.

    Args:
        outcome: of the measurement.
        model: see `find_model`.
        machine: published specs, or None.
        gpus: that hold the model.
        name: of the machine type.
        kv_tokens: KV capacity, where the server does not tell.
        power_w: (idle, prompt, token), where known.

    Raises:
        ProfileError: too little was measured, or nobody tells the KV capacity.
    """
    tokens = capacity(outcome.about, kv_tokens)
    fitted = fit(outcome.samples())
    kv_bytes = model.kv_bytes_per_token
    described = describe_machine(
        model,
        fitted,
        gpus=gpus,
        capacity_tokens=tokens,
        kv_bytes_per_token=kv_bytes,
        base=machine,
        name=name,
    )
    told = outcome.kv_bytes_per_token
    overheads = outcome.store.facts("overhead_s") if outcome.store is not None else []
    provenance = {
        "kind": "measured on a live server",
        "source": f"{outcome.about.model}, server version {outcome.about.version}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "method": "splitgym profile measure, described in docs/profiles.md",
        "runs": str(len(outcome.store.runs)) if outcome.store is not None else "0",
        "kv_capacity": f"{tokens} tokens, {'as given' if kv_tokens else 'as the server says'}",
        "not_in_it": f"{1e3 * median(overheads):.3g} ms that a request takes beside its iterations (median)"
        if overheads
        else "what a request takes beside its iterations",
    }
    if told is not None:
        provenance["kv_bytes_per_token"] = (
            f"{kv_bytes} by the model's dimensions; its connector moved {told:.0f}"
        )
    if outcome.stopped:
        provenance["stopped_early"] = outcome.stopped
    data = content(
        model, described, fitted, kv_bytes_per_token=kv_bytes, provenance=provenance, power_w=power_w
    )
    return data, fitted
