"""Published traces in other shapes: BurstGPT (CSV) and Mooncake (JSON lines).

BurstGPT: Wang et al., BurstGPT: A Real-world Workload Dataset to Optimize LLM Serving Systems (2024).
Mooncake: Qin et al., Mooncake: A KVCache-centric Disaggregated Architecture for LLM Serving (FAST 2025).
"""

import csv
from io import TextIOWrapper
from pathlib import Path

from splitgym.errors import TraceError
from splitgym.trace.importers.collect import TOLD_LINES, Clock, Collector, Imported, Place, Told
from splitgym.trace.importers.json_lines import objects

BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens")


def from_burstgpt(
    path: str | Path,
    *,
    model: str | None = None,
    log_type: str | None = None,
    clock: Clock | None = None,
    name: str | None = None,
    progress: Told | None = None,
) -> Imported:
    """A BurstGPT file as a trace. Rows without response tokens are failures and left out.

    Args:
        path: CSV with `Timestamp` [s], `Model`, `Request tokens`, `Response tokens`.
        model: only these (`ChatGPT`, `GPT-4`).
        log_type: only these (`Conversation log`, `API log`).
        clock: how far times may jump.
        name: of the trace.
        progress: called now and then with the bytes read so far.

    Raises:
        TraceError: another format, or a bad row; names the line.
    """
    path = Path(path)
    out = Collector("BurstGPT, CSV", clock or Clock())
    try:
        with path.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            heads = list(rows.fieldnames or ())
            wanted = (*BURSTGPT, *(("Log Type",) if log_type else ()))
            missing = [head for head in wanted if head not in heads]
            if missing:
                raise TraceError(
                    f"{path}: line 1: lacks the column {missing[0]} of BurstGPT; it has {', '.join(heads)}"
                )
            short: Place | None = None
            for row in rows:
                if short is not None:
                    raise short.error(f"has fewer columns than the first line ({len(heads)})")
                place = Place(path, rows.line_num)
                if progress is not None and rows.line_num % TOLD_LINES == 0:
                    progress(raw.tell())
                if any(row[head] is None for head in wanted):
                    short = place  # an error, but for the last line
                    continue
                if (model and row["Model"] != model) or (log_type and row["Log Type"] != log_type):
                    out.left_out["another model or log type"] += 1
                    continue
                time_s, prompt, output = (
                    _number(place, head, row[head]) for head in BURSTGPT if head != "Model"
                )
                if output == 0:
                    out.left_out["failed: no response tokens"] += 1
                    continue
                out.add(place, time_s, prompt, output)
            if short is not None:
                out.notes.append(f"{path}: line {short.line}, the last, is cut off and left out")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: is no UTF-8 text file with comma-separated values ({error})") from None
    return out.build(path, name, cite="Wang et al., BurstGPT (2024)")


def from_mooncake(
    path: str | Path,
    *,
    skip_bad: bool = False,
    clock: Clock | None = None,
    name: str | None = None,
    progress: Told | None = None,
) -> Imported:
    """A Mooncake trace. Shared prefixes (`hash_ids`) are not used: each prompt counts in full.

    Args:
        path: JSON lines with `timestamp` [ms], `input_length`, `output_length`.
        skip_bad: leave lines out that are no JSON object, instead of stopping.
        clock: how far times may jump.
        name: of the trace.
        progress: called now and then with the bytes read so far.

    Raises:
        TraceError: another format, or a bad line; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    out = Collector("Mooncake, JSON lines", clock or Clock())
    for place, line in objects(path, out.notes, skip_bad=skip_bad, progress=progress):
        missing = [key for key in ("timestamp", "input_length", "output_length") if key not in line]
        if missing:
            raise place.error(f"lacks {missing[0]}: expected timestamp [ms], input_length, output_length")
        stamp = line["timestamp"]
        if isinstance(stamp, bool) or not isinstance(stamp, int | float):
            raise place.error(f"timestamp is {stamp!r}, expected milliseconds")
        if line["output_length"] == 0:
            out.left_out["no output"] += 1
            continue
        out.add(place, stamp / 1000.0, line["input_length"], line["output_length"])
    return out.build(path, name, cite="Qin et al., Mooncake (FAST 2025)")


def _number(place: Place, head: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise place.error(f"{head} is {text!r}, expected a number") from None
