"""JSON lines with their places. A last line that was cut off is left out and said; others stop."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from splitgym.errors import TraceError
from splitgym.trace.importers.collect import TOLD_LINES, Place, Told

Mend = Callable[[str], dict[str, Any] | None]
"""What can be saved of a line that is no JSON; None: nothing."""


def objects(
    path: Path,
    notes: list[str],
    *,
    skip_bad: bool = False,
    mend: Mend | None = None,
    progress: Told | None = None,
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The JSON object of every line that is not empty.

    Args:
        path: of the file.
        notes: what was left out or mended is added.
        skip_bad: leave lines out that are no JSON object, instead of stopping.
        mend: tried on a line that is none.
        progress: called now and then, and at the end, with the bytes read so far.

    Raises:
        TraceError: the file cannot be read, or a line is no JSON object.
    """
    bad: list[int] = []
    done = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                done += len(raw)
                if progress is not None and number % TOLD_LINES == 0:
                    progress(done)
                if not raw.strip():
                    continue
                place = Place(path, number)
                try:
                    found = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    whole = raw.endswith(b"\n")
                    saved = mend(raw.decode(errors="replace")) if mend is not None else None
                    if saved is not None:
                        notes.append(f"{path}: line {number}: its first part was cut off and is left out")
                        yield place, saved
                    elif not whole:
                        notes.append(f"{path}: line {number}, the last, is cut off and left out")
                    elif skip_bad:
                        bad.append(number)
                    else:
                        raise _refusal(place, error, first=number == 1) from None
                    continue
                if isinstance(found, dict):
                    yield place, found
                elif skip_bad:
                    bad.append(number)
                else:
                    raise place.error(f"holds {type(found).__name__}, expected a JSON object a line")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    if progress is not None:
        progress(done)
    if bad:
        more = ", ..." if len(bad) > 5 else ""
        lines = ", ".join(map(str, bad[:5]))
        notes.append(f"{path}: {len(bad)} lines are no JSON object and left out ({lines}{more})")


def _refusal(place: Place, error: Exception, first: bool) -> TraceError:
    why = " ".join(str(error).split())
    if first:
        return place.error(f"is no JSON ({why}): this reader takes JSON lines, one object a line")
    return place.error(f"is no JSON ({why}); --skip-bad leaves such lines out")
