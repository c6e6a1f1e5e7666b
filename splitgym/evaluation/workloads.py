"""Workloads by name: a short text says what arrives, a seed says which window of it.

    poisson:azure-code@19          Poisson arrivals, 19 requests/s, sizes drawn from the trace
    stamps:azure-conv@8            the trace's own stamps, sped up or slowed down to 8 requests/s on average
    stamps:azure-conv@x2           the same, twice as fast as recorded
    shifting:azure-conv~azure-code@12    Poisson, sizes move from the first trace to the second and back
    mixed:azure-conv+azure-code@12       Poisson, sizes from both, half and half
    poisson:azure-code@0.9sat      any of them at 0.9 of what saturates the cluster (`splitgym.saturation`)

Everything is taken from one part of the trace (`train`, `validation`, `test`), stamps and sizes alike. `all`
is the whole trace: for sizing clusters, where nothing is learned and nothing can leak.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym import trace as traces
from splitgym.config import STRICT, make
from splitgym.errors import ConfigError, MissingTraceError, TraceError
from splitgym.trace import Trace

Kind = Literal["poisson", "stamps", "shifting", "mixed"]
Part = Literal["train", "validation", "test", "all"]

_TEXT = re.compile(
    r"^(?P<kind>poisson|stamps|shifting|mixed)(?::(?P<sources>[^@]+))?(?:@(?P<factor>x)?(?P<rate>[0-9.]+)(?P<load>sat)?)?$"
)
_JOINED_BY = {"shifting": "~", "mixed": "+"}
_BOTH = ("azure-conv", "azure-code")
MACHINES_PER_COPY = 8
"""Above this many machines, workloads with real stamps superpose one rotated copy for every so many."""


@dataclass(frozen=True, config=STRICT)
class Workload:
    """What arrives. Arrivals last for `warmup_s` + `duration_s`; those after the warm-up are measured."""

    kind: Kind
    sources: tuple[str, ...] = ("azure-conv",)
    """Traces by name or path: one, or two for `shifting` and `mixed`."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Mean arrivals per second. Only `stamps` can do without (the recorded rate, times `speed`)."""
    load: float | None = Field(default=None, gt=0)
    """The rate as a fraction of saturation; `evaluate`, which knows the cluster, works out `rate_per_s`."""
    speed: float = Field(default=1.0, gt=0)
    """`stamps` without a rate: how many times faster than recorded."""
    duration_s: float = Field(default=100.0, gt=0)
    warmup_s: float = Field(default=20.0, ge=0)
    part: Part = "test"
    period_s: float | None = Field(default=None, gt=0)
    """`shifting`: one wave from the first trace to the second and back; None is the whole run."""
    fraction: float = Field(default=0.5, ge=0, le=1)
    """`mixed`: share of requests of the second trace."""
    pieces: int | None = Field(default=None, ge=1)
    """`stamps`: cut the part into so many equal pieces; seed k begins at the k-th. None: windows begin at
    random, and may overlap."""
    copies: int | None = Field(default=None, ge=1)
    """`stamps`: rotated copies that are superposed; None: by the size of the cluster."""

    def __post_init__(self) -> None:
        wanted = 2 if self.kind in _JOINED_BY else 1
        if len(self.sources) != wanted:
            raise ValueError(f"a {self.kind} workload has {wanted} trace(s), found {list(self.sources)}")
        if self.rate_per_s is None and self.load is None and self.kind != "stamps":
            raise ValueError(f"a {self.kind} workload needs a rate: {self.kind}:TRACE@REQUESTS_PER_SECOND")

    @property
    def end_s(self) -> float:
        """When arrivals end."""
        return self.warmup_s + self.duration_s

    @property
    def base_name(self) -> str:
        """The name without its rate."""
        return f"{self.kind}:{_JOINED_BY.get(self.kind, '').join(self.sources)}"

    @property
    def name(self) -> str:
        """The text that `parse` reads."""
        if self.load is not None:
            return f"{self.base_name}@{self.load:g}sat"
        if self.rate_per_s is not None:
            return f"{self.base_name}@{self.rate_per_s:g}"
        return f"{self.base_name}@x{self.speed:g}"

    def at_rate(self, rate_per_s: float) -> "Workload":
        """The same workload at another rate."""
        return replace(self, rate_per_s=rate_per_s, load=None)

    def build(self, seed: int = 0, machines: int = 1, load: Callable[[str], Trace] | None = None) -> Trace:
        """The trace of one window: arrivals in [0, end_s).

        Args:
            seed: which window (and which Poisson arrivals); one seed gives one trace.
            machines: size of the cluster; decides how many rotated copies real stamps are made of.
            load: gives a trace by name; None is `find`.

        Raises:
            TraceError: a trace that cannot be loaded, or is too short for the window at this speed.
            ConfigError: a load whose rate has not been worked out.
        """
        if self.load is not None and self.rate_per_s is None:
            raise ConfigError(f"workload {self.name}: a load needs a cluster to become a rate")
        load = load or find
        found = [load(source) for source in self.sources]
        parts = found if self.part == "all" else [traces.part(trace, self.part) for trace in found]
        if self.kind == "stamps":
            return self._stamps(parts[0], seed, machines)
        assert self.rate_per_s is not None
        if self.kind == "poisson":
            return traces.poisson(parts[0], self.rate_per_s, self.end_s, seed)
        if self.kind == "shifting":
            period_s = self.period_s or self.end_s
            return traces.shift_between(parts[0], parts[1], self.end_s, period_s, self.rate_per_s, seed)
        both = traces.mix(parts[0], parts[1], self.fraction, seed)
        return traces.poisson(both, self.rate_per_s, self.end_s, seed)

    def _stamps(self, one_part: Trace, seed: int, machines: int) -> Trace:
        copies = self.copies or -(-machines // MACHINES_PER_COPY)
        speed = self.speed
        if self.rate_per_s is not None:
            speed = self.rate_per_s / (copies * one_part.rate_per_s)
        lasts = one_part.duration_s / speed
        if lasts < self.end_s:
            raise TraceError(
                f"workload {self.name}: the {self.part} part lasts {lasts:.0f} s at this rate, "
                f"the window needs {self.end_s:.0f} s; shorten the duration or lower the rate"
            )
        rng = np.random.default_rng(seed)
        source = traces.superpose(one_part, copies, rng) if copies > 1 else one_part
        length = self.end_s * speed  # of the window, in the trace's own time
        if self.pieces is not None:
            start = self._piece(seed, source.duration_s, length)
        else:
            start = float(rng.uniform(0.0, max(0.0, source.duration_s - length)))
        return traces.speed_up(traces.window(source, start, start + length), speed)

    def _piece(self, seed: int, lasts_s: float, length_s: float) -> float:
        """Where the piece of a seed begins."""
        assert self.pieces is not None
        piece_s = lasts_s / self.pieces
        if seed >= self.pieces:
            raise TraceError(f"workload {self.name}: there are {self.pieces} pieces, seed {seed} has none")
        if length_s > piece_s:
            raise TraceError(
                f"workload {self.name}: a piece lasts {piece_s:.1f} s, the window needs {length_s:.1f} s: "
                "take fewer pieces or a shorter window"
            )
        return seed * piece_s


def parse(text: str, **fields: object) -> Workload:
    """A workload from its text.

    Args:
        text: such as `poisson:azure-code@19`, see the module.
        fields: other fields of `Workload` (`duration_s=...`).

    Raises:
        ConfigError: the text has another form, or a field is out of range.
    """
    match = _TEXT.match(text.strip())
    if match is None:
        raise ConfigError(
            f"workload {text!r} is not KIND:TRACE@RATE such as poisson:azure-code@19 "
            "(kinds: poisson, stamps, shifting, mixed)"
        )
    kind, joined = match["kind"], _JOINED_BY.get(match["kind"])
    named = match["sources"]
    if joined:
        sources = tuple(named.split(joined)) if named else _BOTH
    else:
        sources = (named or _BOTH[0],)
    given: dict[str, object] = {"kind": kind, "sources": sources}
    if match["rate"]:
        given["speed" if match["factor"] else "load" if match["load"] else "rate_per_s"] = match["rate"]
    if match["factor"] and match["load"]:
        raise ConfigError(f"workload {text!r}: give a load (@0.9sat) or a speed (@x2), not both")
    if match["factor"] and kind != "stamps":
        raise ConfigError(f"workload {text!r}: only stamps have a recorded rate to multiply; give requests/s")
    return make(Workload, **(given | fields))


def parse_at_rates(texts: Sequence[str], rates_per_s: Sequence[float], **fields: object) -> list[Workload]:
    """Workloads of several texts; one without a rate is taken at each of `rates_per_s`, if there are any.

    Raises:
        ConfigError: see `parse`; or rates for which no workload is left open.
    """
    if rates_per_s and all("@" in text for text in texts):
        raise ConfigError(f"rates are given, but every workload has its own: {', '.join(texts)}")
    found = []
    for text in texts:
        if "@" in text or not rates_per_s:
            found.append(parse(text, **fields))
        else:
            found += [parse(text, rate_per_s=rate, **fields) for rate in rates_per_s]
    return found


def find(name: str) -> Trace:
    """A trace by name or path; for an Azure original that is not on this machine, its built-in likeness.

    The name of the trace that comes back says which of the two it is. Nothing is downloaded.

    Raises:
        TraceError: no such trace, or a file that cannot be used (a damaged original is not replaced).
    """
    try:
        return traces.load(name, download=False)
    except MissingTraceError:
        return traces.load(f"{name}-synth")


def stand_ins(workloads: Sequence[Workload], load: Callable[[str], Trace] | None = None) -> dict[str, str]:
    """Which originals are missing here and what is used instead: {"azure-code": "azure-code-synth"}."""
    names = {source for workload in workloads for source in workload.sources}
    found = {name: (load or find)(name).name for name in sorted(names)}
    return {name: used for name, used in found.items() if used == f"{name}-synth"}
