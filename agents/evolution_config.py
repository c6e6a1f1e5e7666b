"""Fields of a run of `es` or `cem`: `evolution`."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from splitgym.config import STRICT
from splitgym.saturation import WORKLOADS


@dataclass(frozen=True, config=STRICT)
class EvolutionConfig:
    """Evolution strategies (`es`) and the cross-entropy method (`cem`) over schedulers: the index and its
    residual, the reactive sizing rule and its network, or both.

    A step of the run is a generation. The numbers are those of the study that found the residual, where it
    said any.
    """

    clusters: Literal["many", "own"] = "many"
    """`many` draws a cluster a scenario; `own` is the run's cluster."""
    machines: tuple[int, int] = (4, 16)
    """`many`: least and most machines."""
    mixed: float = Field(default=0.5, ge=0, le=1)
    """`many`: share of clusters with A100 beside H100 machines."""
    models: tuple[str, ...] = ("bloom-176b", "llama2-70b")
    """`many`: models, drawn evenly."""
    workloads: tuple[str, ...] = WORKLOADS
    """Drawn evenly, from the train part. One with a rate of its own (`stamps:FILE@x1`) has no load and
    is taken as recorded."""
    loads: tuple[float, float] = (0.8, 1.35)
    """Fractions of saturation, drawn uniformly."""
    length_shift: float = Field(default=0.0, ge=0, lt=1)
    """Outputs of a scenario are 1 - this to 1 + this times as long as recorded, drawn once a scenario."""
    profile_error: float = Field(default=0.0, ge=0, lt=1)
    """Schedulers believe prompts and token iterations to take 1 - this to 1 + this times what they take, two
    factors drawn once a scenario, the same for all candidates. Validation is with the true profile."""
    switch_delays_s: tuple[float, ...] = ()
    """Switching delays of the clusters, drawn evenly; none: the run's cluster's."""
    scenarios: int = Field(default=10, ge=1)
    """A generation; all its candidates run on the same ones."""
    tail_weight: float = Field(default=0.05, ge=0)
    """What the tail costs: goodput - tail_weight x tail is sought, see `agents.scenarios.tail`."""
    tail_weight_overload: float | None = Field(default=None, ge=0)
    """The tail's weight in scenarios beyond `overload_from`, where somebody must wait whatever is decided;
    None: the same as elsewhere."""
    overload_from: float = Field(default=1.4, gt=0)
    """Load from which `tail_weight_overload` holds."""
    slo_weight: float = Field(default=0.0, ge=0)
    """What missing the nine SLOs costs: slo_weight x excess is taken off, see `agents.scenarios.excess`."""
    slo_until: float = Field(default=1.3, gt=0)
    """Load up to which it counts: beyond, nobody can hold them."""
    ranked: Literal["mean", "scenario"] = "mean"
    """What the candidates of a generation are compared by: the mean of their fitness over its scenarios, or
    the mean of their ranks in each. By ranks the small differences of low loads count as much as the large
    ones of overload."""
    energy_weight: float = Field(default=0.0, ge=0)
    """What a kilojoule a request costs: energy_weight x energy is taken off as well."""
    hidden: int = Field(default=16, ge=0)
    """ES: width of the routing network."""
    hidden_sizing: int = Field(default=12, ge=1)
    """ES: width of the sizing network."""
    rule: Literal["reactive", "ewma"] = "reactive"
    """CEM, pool sizing: the rule whose options are tuned."""
    pairs: int = Field(default=16, ge=1)
    """ES: mirrored pairs of candidates."""
    learning_rate: float = Field(default=0.15, gt=0)
    """ES: Adam's; a step is 2 x learning_rate x sigma. Over the second half it falls to a tenth."""
    average: float = Field(default=0.02, gt=0, le=1)
    """ES: weight of the newest iterate in the moving average, which is the result."""
    start: str | None = None
    """Run folder of `es` or `cem`, or bundle, whose result is where the search begins; None begins at the
    heuristics (the index with tuned weights, the reactive rule).
    """
    start_sizing: str | None = None
    """Joint: the same for the sizing part, where `start` has only a routing part."""
    population: int = Field(default=32, ge=4)
    """CEM: candidates a generation."""
    elite: float = Field(default=0.25, gt=0, le=0.5)
    """CEM: share of them that the next distribution is fitted to."""
    smoothing: float = Field(default=0.7, gt=0, le=1)
    """CEM: weight of the new distribution."""
    loads_judged: tuple[float, ...] = (0.9, 1.05, 1.2, 1.35)
    """Loads of the validation windows; each workload is run at each, on `evaluation.windows` windows."""
    clusters_judged: tuple[str, ...] = ("h100-80gb:8M", "h100-80gb:4M+a100-80gb:4M")
    """`many`: clusters of the validation windows, of the first model."""
    threads: int | None = Field(default=None, ge=1)
    """None: as many as cores. The result does not depend on it."""
