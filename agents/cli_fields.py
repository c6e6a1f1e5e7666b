"""Options of `train` and `tune` as fields of a `RunConfig`."""

from pathlib import Path
from typing import Any

from splitgym.config import ClusterConfig, load_yaml, parse_machines, read_yaml, to_mapping
from splitgym.errors import ConfigError


def first_fields(
    config: Path | None, algo: str, env: str, steps: int | None, seed: int | None
) -> dict[str, Any]:
    """The fields of a file, with those of the first options over them.

    Raises:
        ConfigError: a file that cannot be read, or holds no mapping.
    """
    fields = {} if config is None else read_yaml(config)
    for key, value in (("algo", algo), ("env", env), ("steps", steps), ("seed", seed)):
        if value not in ("", None):
            fields[key] = value
    return fields


def cluster_fields(machines: str, model: str, file: Path | None) -> dict[str, Any]:
    """Of `RunConfig.cluster`: of the file if there is one.

    Raises:
        ConfigError: machines or a file that cannot be read.
    """
    if file is not None:
        return to_mapping(load_yaml(ClusterConfig, file))
    fields: dict[str, Any] = {"model": model} if model else {}
    if machines:
        fields["machines"] = [to_mapping(group) for group in parse_machines(machines)]
    return fields


def workload_fields(trace: str | None, rate: str | None, arrivals: str | None) -> dict[str, Any]:
    """Of `RunConfig.workload`.

    Raises:
        ConfigError: a rate that is none.
    """
    fields: dict[str, Any] = {}
    if trace:
        fields["trace"] = trace
    if arrivals:
        fields["arrivals"] = arrivals
    if rate == "own":
        fields["rate_per_s"] = None
    elif rate:
        try:
            numbers = [float(part) for part in rate.split("-")]
        except ValueError:
            raise ConfigError(f"--rate {rate!r}: expected a number, LOW-HIGH or own") from None
        fields["rate_per_s"] = numbers[0] if len(numbers) == 1 else numbers
    return fields


def put(fields: dict[str, Any], key: str, values: dict[str, Any]) -> None:
    """Add to a group of fields."""
    if values:
        fields[key] = {**fields.get(key, {}), **values}


def set_field(fields: dict[str, Any], text: str) -> None:
    """Apply `a.b=value`; the value is read as YAML.

    Raises:
        ConfigError: another form, a place that is no group, or a value that is no YAML.
    """
    import yaml

    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {text!r}: expected FIELD=VALUE such as learner.num_envs=4")
    *parents, last = path.strip().split(".")
    place = fields
    for name in parents:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {text!r}: {name} is no group of fields")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: {value!r} is no YAML value") from None
