"""The clusters of the benchmark, with the loads, the windows and the splits that are tried on each."""

from dataclasses import dataclass

from splitgym.config import ClusterConfig, make, parse_machines
from splitgym.evaluation.workloads import Part
from splitgym.saturation import WORKLOADS

LOADS = (0.5, 0.75, 0.9, 1.05, 1.2, 1.35)
"""Fractions of saturation on clusters of 8 machines."""
LARGE_LOADS = (0.9, 1.05, 1.2)
"""The same at 40 machines and more."""
CLAIMED_FROM = 0.9
"""Claims on goodput are about this load and more."""
THRESHOLDS = (2048, 8192, 65536)
"""Pending tokens from which the paper's scheduler calls a prompt queue long; 8192 is its default."""


@dataclass(frozen=True)
class Case:
    """One cluster, what arrives at it, and what the paper's scheduler may choose from."""

    name: str
    """In claims: `routing.goodput_over_tuned.NAME`."""
    title: str
    machines: str
    """All in the mixed pool: for the policies that do not care for pools."""
    default_split: str
    """The paper's split, scaled: 5 prompt machines to 3 token machines; H100 to A100 where there are both."""
    splits: tuple[str, ...]
    """Those tried for the paper's scheduler at its best."""
    model: str = "bloom-176b"
    loads: tuple[float, ...] = LOADS
    windows: int = 8
    """Test windows a workload and load."""
    workloads: tuple[str, ...] = WORKLOADS
    part: Part = "test"
    warmup_s: float = 20.0
    duration_s: float = 100.0

    def config(self, machines: str = "") -> ClusterConfig:
        """The cluster's configuration, or with these pools of the same machines."""
        return make(ClusterConfig, model=self.model, machines=parse_machines(machines or self.machines))

    @property
    def claimed_loads(self) -> tuple[float, ...]:
        """Those that claims on goodput are about."""
        return tuple(load for load in self.loads if load >= CLAIMED_FROM)


def _h100(machines: int, *prompt: int) -> tuple[str, ...]:
    return tuple(f"h100-80gb:{p}P{machines - p}T" for p in prompt)


def _both(each: int, *pools: tuple[int, int]) -> tuple[str, ...]:
    """Splits of so many H100 and as many A100, given the prompt machines among each."""

    def group(machine: str, prompt: int) -> str:
        return f"{machine}:{f'{prompt}P' * (prompt > 0)}{f'{each - prompt}T' * (prompt < each)}"

    return tuple(f"{group('h100-80gb', h)}+{group('a100-80gb', a)}" for h, a in pools)


_FEW = ((4, 0), (3, 0), (2, 0), (1, 0), (2, 2), (3, 1))
_MANY = ((4, 1), (4, 2), (4, 3), (3, 4), (2, 4), (1, 4), (0, 4))
_MIXES = (*_FEW, *_MANY)
"""Prompt machines among 4 H100 and among 4 A100."""

CASES = {
    case.name: case
    for case in (
        Case("8h", "8 H100", "h100-80gb:8M", "h100-80gb:5P3T", _h100(8, 1, 2, 3, 4, 5, 6, 7)),
        Case(
            "4h4a",
            "4 H100 + 4 A100",
            "h100-80gb:4M+a100-80gb:4M",
            "h100-80gb:4P+a100-80gb:4T",
            _both(4, *_MIXES),
        ),
        Case(
            "llama",
            "8 H100, llama2-70b",
            "h100-80gb:8M",
            "h100-80gb:5P3T",
            _h100(8, 1, 2, 3, 4, 5, 6, 7),
            model="llama2-70b",
        ),
        Case(
            "40h",
            "40 H100",
            "h100-80gb:40M",
            "h100-80gb:25P15T",
            _h100(40, 8, 12, 16, 20, 24, 28, 32, 36),
            loads=LARGE_LOADS,
            windows=4,
        ),
        Case(
            "20h20a",
            "20 H100 + 20 A100",
            "h100-80gb:20M+a100-80gb:20M",
            "h100-80gb:20P+a100-80gb:20T",
            _both(20, *((5 * h, 5 * a) for h, a in _MIXES)),
            loads=LARGE_LOADS,
            windows=4,
        ),
        Case(
            "64h",
            "64 H100",
            "h100-80gb:64M",
            "h100-80gb:40P24T",
            _h100(64, 14, 20, 26, 32, 38, 44, 50, 56),
            loads=LARGE_LOADS,
            windows=4,
        ),
    )
}
