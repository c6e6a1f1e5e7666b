"""The known formats of trace files, told apart by their column names."""

from dataclasses import dataclass
from pathlib import Path

from splitgym.errors import TraceError


@dataclass(frozen=True)
class Schema:
    """One known file format: which of its columns is which of ours."""

    name: str
    columns: dict[str, str]  # ours -> the file's
    optional: dict[str, str]  # ours -> the file's
    clock: bool = False
    """Arrivals are dates and times; they are shifted so that the first is 0."""
    fixed: tuple[tuple[str, int], ...] = ()
    """Columns that must have this value when they are there: anything else is no request of ours."""
    dropped: tuple[str, ...] = ()
    """Known columns that say nothing about a request's arrival or size."""


SCHEMAS = (
    Schema(
        "splitgym",
        {"arrival_s": "arrival_s", "prompt_tokens": "prompt_tokens", "output_tokens": "output_tokens"},
        {"max_tokens": "max_tokens"},
    ),
    Schema(
        "azure",
        {"arrival_s": "TIMESTAMP", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"},
        {},
        clock=True,
    ),
    Schema(
        "splitwise-sim",
        {"arrival_s": "arrival_timestamp", "prompt_tokens": "prompt_size", "output_tokens": "token_size"},
        {},
        fixed=(("batch_size", 1), ("request_type", 2)),
        dropped=("request_id", "application_id"),
    ),
)


def match_schema(path: Path, names: list[str]) -> Schema:
    """The format whose columns these are.

    Raises:
        TraceError: columns of a known format are missing, or no format is near.
    """
    for name in names:
        if names.count(name) > 1:
            raise TraceError(f"{path}: column {name} is there twice")

    def present(schema: Schema) -> int:
        return sum(column in names for column in schema.columns.values())

    best = max(SCHEMAS, key=present)
    missing = [column for column in best.columns.values() if column not in names]
    if not missing:
        return best
    if present(best):
        lacks = "column " + missing[0] if len(missing) == 1 else "columns " + ", ".join(missing)
        raise TraceError(f"{path}: lacks the {lacks} of the {best.name} format; it has {', '.join(names)}")
    if {"Request tokens", "Response tokens"} <= set(names):
        raise TraceError(f"{path}: is BurstGPT's format: `splitgym trace from-burstgpt` converts it")
    known = "; ".join(",".join(schema.columns.values()) for schema in SCHEMAS)
    raise TraceError(f"{path}: no known trace format: has columns {', '.join(names)}, expected {known}")
