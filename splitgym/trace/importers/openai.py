"""Recorded answers of OpenAI-compatible servers (JSON lines) as a trace.

A line is an answer (`chat.completion`, `text_completion`, `response`), or an object that holds one: under
`response` (as OpenAI's batch output files have it, with a `body` inside) or `body`, with the request beside
it under `request` or `body`. Only times, counts and limits are read; texts are not.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from splitgym.errors import TraceError
from splitgym.trace.importers.collect import Clock, Collector, Imported, Place, Told
from splitgym.trace.importers.json_lines import objects

TIMES = (
    "timestamp",
    "time",
    "start_time",
    "startTime",
    "request_time",
    "arrival_s",
    "created_at",
    "created",
    "ts",
)
"""Where a time is looked for, in this order; the outermost object first."""
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
BACK_S = 3600.0
"""Lines are written when answers end, so they are out of order by as much as an answer takes."""
_MILLISECONDS_FROM = 1e11
_LATEST_S = 4102444800.0  # the year 2100


def from_openai_jsonl(
    path: str | Path,
    *,
    skip_bad: bool = False,
    clock: Clock | None = None,
    name: str | None = None,
    progress: Told | None = None,
) -> Imported:
    """Recorded answers as a trace.

    Args:
        path: JSON lines.
        skip_bad: leave lines out that are no JSON object, instead of stopping.
        clock: how far times may jump.
        name: of the trace.
        progress: called now and then with the bytes read so far.

    Raises:
        TraceError: no such file, a line without what is needed, or a clock that jumps; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    out = Collector("OpenAI JSON lines", clock or Clock(back_s=BACK_S))
    for place, line in objects(path, out.notes, skip_bad=skip_bad, progress=progress):
        parts = list(_parts(line))
        if _failed(parts):
            out.left_out["failed"] += 1
            continue
        usage = next((part["usage"] for part in parts if isinstance(part.get("usage"), dict)), None)
        if usage is None:
            raise place.error(
                "has no `usage`: expected an answer of an OpenAI-compatible server, or an object that holds "
                "one under `response` or `body`"
            )
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        output = usage.get("completion_tokens", usage.get("output_tokens"))
        if not output:
            out.left_out["no output"] += 1
            continue
        limit = next((part[key] for part in parts for key in LIMITS if part.get(key)), None)
        out.add(place, _time(place, parts), prompt, output, limit)
    return out.build(path, name)


def _parts(line: dict[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """The object and those it holds where answers and requests are, outermost first."""
    yield line
    for key in ("request", "response", "body"):
        inner = line.get(key)
        if isinstance(inner, dict) and depth < 3:
            yield from _parts(inner, depth + 1)


def _failed(parts: list[dict[str, Any]]) -> bool:
    for part in parts:
        status = part.get("status_code", 200)
        if part.get("error") or (isinstance(status, int) and status >= 400):
            return True
    return False


def _time(place: Place, parts: list[dict[str, Any]]) -> float:
    for part in parts:
        for key in TIMES:
            if part.get(key) is not None:
                return _seconds(place, key, part[key])
    raise place.error(f"has no time: expected one of {', '.join(TIMES)}")


def _seconds(place: Place, key: str, value: Any) -> float:
    """Seconds since 1970 of a number (seconds or milliseconds) or a date and time.

    A date without a zone is taken as UTC.
    """
    if isinstance(value, str):
        try:
            stamp = datetime.fromisoformat(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                raise place.error(f"{key} is {value!r}, expected seconds or an ISO date and time") from None
        else:
            text = value if stamp.tzinfo is not None else f"{value}+00:00"
            return datetime.fromisoformat(text).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise place.error(f"{key} is {value!r}, expected seconds or an ISO date and time")
    seconds = value / 1000.0 if value >= _MILLISECONDS_FROM else float(value)
    if not 0 <= seconds <= _LATEST_S:
        raise place.error(f"{key} is {value!r}: no time between 1970 and 2100")
    return seconds
