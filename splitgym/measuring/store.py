"""The file of measurements: JSON lines, one a run, added as they come, so that a sweep can go on later."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from splitgym.errors import ProfileError
from splitgym.measuring.plan import Step

VERSION = 2
STEADY = 0.01
"""Standard error of a step's median, as a share of it, that is good enough."""


@dataclass
class Store:
    """Runs that were measured.

    Args:
        path: of the file.
        header: who was measured; a file with another header is not added to.
    """

    path: Path
    header: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, header: dict[str, Any], *, fresh: bool = False) -> "Store":
        """Go on with a file, or begin one.

        Args:
            path: of the file.
            header: of the servers at hand.
            fresh: begin anew whatever is there.

        Raises:
            ProfileError: the file is of other servers, no file of measurements, or cannot be written.
        """
        store = cls(path, {"v": VERSION, **header})
        try:
            if path.exists() and not fresh:
                store._read()
            else:
                path.write_text(json.dumps(store.header) + "\n")
        except OSError as error:
            raise ProfileError(f"{path}: cannot be used ({error.strerror})") from None
        return store

    def _read(self) -> None:
        raw = self.path.read_bytes()
        lines = raw.decode(errors="replace").split("\n")
        good = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            data: Any = None
            with suppress(ValueError):
                data = json.loads(line)
            if not isinstance(data, dict):
                if number == len(lines) and good:
                    self.notes.append(
                        f"{self.path}: line {number}, the last, was cut off and is measured again"
                    )
                    self.path.write_text("\n".join(lines[:-1]) + "\n")
                    return
                raise ProfileError(
                    f"{self.path}: line {number}: is no line of measurements; mend it, or --fresh begins anew"
                )
            if good == 0:
                self._check(data)
            else:
                self.runs.append(self._run(data, number))
            good += 1
        if not good:
            self.path.write_text(json.dumps(self.header) + "\n")
        elif not raw.endswith(b"\n"):
            self.path.write_bytes(raw + b"\n")

    def _check(self, found: dict[str, Any]) -> None:
        for key, value in self.header.items():
            if found.get(key) != value:
                raise ProfileError(
                    f"{self.path}: holds measurements with {key} {found.get(key)!r}, now it is {value!r}: "
                    "name another file with --measurements, or --fresh begins anew"
                )

    def _run(self, data: dict[str, Any], number: int) -> dict[str, Any]:
        if not isinstance(data.get("step"), str) or not isinstance(data.get("samples"), list):
            raise ProfileError(
                f"{self.path}: line {number}: lacks step or samples; mend it, or --fresh begins anew"
            )
        return data

    def done(self, step: Step) -> int:
        """Runs of a step that are there."""
        return sum(run["step"] == step.name for run in self.runs)

    def steady(self, step: Step) -> bool:
        """Whether the median of its runs is known well: its standard error, from their spread, is small."""
        if step.kind == "transfer":
            return True  # what matters is how well all of them tell the bandwidth: `run` looks at that
        runs = [run["samples"] for run in self.runs if run["step"] == step.name]
        if step.output:  # its samples differ by their context: the runs are compared as wholes
            runs = [[[fmean(sample[-1] for sample in samples)]] for samples in runs if samples]
        times = [sample[-1] for samples in runs for sample in samples]
        if len(times) < 2:
            return True
        middle = median(times)
        # 1.4826 makes the median distance a standard deviation, 1.2533 that of a mean one of a median.
        spread = 1.4826 * median(abs(t - middle) for t in times)
        return 1.2533 * spread / len(times) ** 0.5 <= STEADY * middle

    def add(self, step: Step, samples: list[Any], **facts: Any) -> None:
        """Add a run, at once on disk.

        Raises:
            ProfileError: the file cannot be written.
        """
        run = {"step": step.name, "samples": samples, **facts}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(run) + "\n")
        except OSError as error:
            raise ProfileError(f"{self.path}: cannot be written ({error.strerror})") from None
        self.runs.append(run)

    def samples(self, kind: str) -> Iterator[Any]:
        """All samples of one kind of step."""
        for run in self.runs:
            if run["step"].startswith(f"{kind}-"):
                yield from run["samples"]

    def facts(self, name: str) -> list[float]:
        """A fact that runs noted."""
        return [run[name] for run in self.runs if name in run]
