"""Results of vLLM's benchmark (`vllm bench serve --save-result --save-detailed`) as a trace."""

import json
from pathlib import Path
from typing import Any

from splitgym.errors import TraceError
from splitgym.trace.draws import generators
from splitgym.trace.importers.collect import Clock, Collector, Imported, Place


def from_vllm_bench(
    path: str | Path,
    *,
    rate_per_s: float | None = None,
    clock: Clock | None = None,
    name: str | None = None,
) -> Imported:
    """What a benchmark sent. Requests that failed are left out.

    Args:
        path: the result file: one JSON object, or one a line (`--append-result`), of which the last counts.
        rate_per_s: where the file has no `start_times`: draw Poisson arrivals at this rate, with the clock's
            seed.
        clock: its seed and scatter count.
        name: of the trace.

    Raises:
        TraceError: no such file, no lengths in it, or no times and no rate.
    """
    path = Path(path)
    line, result = _read(path)
    place = Place(path, line)
    prompts, outputs = (_list(place, result, key) for key in ("input_lens", "output_lens"))
    errors = result.get("errors") or [""] * len(prompts)
    if not len(prompts) == len(outputs) == len(errors):
        raise place.error(
            f"input_lens has {len(prompts)} values, output_lens {len(outputs)}, errors {len(errors)}"
        )
    clock = clock or Clock()
    # Requests stand in the order in which they were sent, by a clock that cannot jump.
    out = Collector("vLLM benchmark, JSON", Clock(trust=True, scatter_s=clock.scatter_s, seed=clock.seed))
    times, how = _times(place, result, len(prompts), rate_per_s, clock.seed)
    for time_s, prompt, output, error in zip(times, prompts, outputs, errors):
        if error or not output:
            out.left_out["failed"] += 1
        else:
            out.add(place, time_s, prompt, output)
    about = {key: str(result[key]) for key in ("model_id", "date", "request_rate") if key in result}
    return out.build(path, name, arrivals=how, **about)


def _read(path: Path) -> tuple[int, dict[str, Any]]:
    """(line, result): the whole file, or its last line that is one."""
    try:
        text = path.read_text()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: is no UTF-8 text") from None
    found: Any = None
    number = 1
    try:
        found = json.loads(text)
    except ValueError as error:
        why = str(error)
        for number, line in reversed(list(enumerate(text.splitlines(), 1))):
            if line.strip():
                try:
                    found = json.loads(line)
                except ValueError:
                    raise TraceError(f"{path}: line {number}: is no JSON ({why}): was it cut off?") from None
                break
    if not isinstance(found, dict):
        raise TraceError(f"{path}: line {number}: expected a JSON object with the results of a benchmark")
    return number, found


def _list(place: Place, result: dict[str, Any], key: str) -> list[Any]:
    found = result.get(key)
    if not isinstance(found, list):
        raise place.error(f"has no list {key}: run `vllm bench serve` with --save-result --save-detailed")
    return found


def _times(
    place: Place, result: dict[str, Any], count: int, rate_per_s: float | None, seed: int
) -> tuple[list[float], str]:
    starts = result.get("start_times")
    if isinstance(starts, list) and rate_per_s is None:
        if len(starts) != count:
            raise place.error(f"start_times has {len(starts)} values, input_lens {count}")
        wrong = [value for value in starts if isinstance(value, bool) or not isinstance(value, int | float)]
        if wrong:
            raise place.error(f"start_times holds {wrong[0]!r}, expected seconds")
        return [float(value) for value in starts], "as sent"
    if rate_per_s is None:
        raise place.error(
            "has no start_times (an older vLLM): --rate R draws Poisson arrivals at R a second instead"
        )
    if not 0 < rate_per_s < float("inf"):
        raise TraceError(f"rate {rate_per_s}: expected a positive number of requests a second")
    (draw,) = generators(seed, 1)
    gaps = draw.exponential(size=count) / rate_per_s
    return [float(value) for value in gaps.cumsum()], f"drawn: Poisson, {rate_per_s!r}/s, seed {seed}"
