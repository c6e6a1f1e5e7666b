"""Fit the shipped profiles to the measurements published with the paper's simulator, and state the error.

    python profiles/fit.py                    # from splitwise-sim/perf_model.csv under SPLITGYM_DATA
    python profiles/fit.py --data perf_model.csv --out DIR --plot fit.png

The method is described in docs/profiles.md.
"""

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from dataclasses import astuple, dataclass
from pathlib import Path

from splitgym.errors import ProfileError
from splitgym.profile.curves import BATCH_PROMPT, Point, PromptFit, TokenFit, errors, isotonic, run_errors
from splitgym.profile.measured_file import as_text
from splitgym.profile.specs import MachineSpec, ModelSpec, machines, models
from splitgym.resources import data_folder

Key = tuple[str, str, int]  # model, machine, tensor parallel

EXCLUDED = {
    ("llama2-70b", 2, (512, 64)): "(512, batch 64): out of memory, its prompt is faster than batch 4's"
}
H100_POWER = 1.75
SOURCE = (
    "SplitwiseSim (MIT, (c) 2024 Pratyush Patel), perf_model.csv, sha256 "
    "dbbe505d1d64fc4bd1ec03c50edf944643586de4f68a81e94cbd55dd5bdfbf41"
)


@dataclass(frozen=True)
class Measured:
    """Medians of one model on one machine."""

    prompt_ms: dict[Point, float]
    token_ms: dict[Point, float]
    peak_power: dict[Point, float]  # share of the GPUs' maximum; empty where not measured
    average_power: dict[Point, float]
    prompt_runs: dict[Point, list[float]]  # ms of every run


def read(path: Path) -> dict[Key, Measured]:
    """Medians over repeated runs by (prompt, batch).

    Token times and power come from the runs with 128 output tokens, the one length that all points have.

    Raises:
        ProfileError: the file cannot be read or lacks a column.
    """
    columns = ("prompt_ms", "token_ms", "peak_power", "average_power")
    raw: dict[Key, tuple[dict[Point, list[float]], ...]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = (row["model"], row["hardware"], int(row["tensor_parallel"]))
                point = (int(row["prompt_size"]), int(row["batch_size"]))
                if (key[0], key[2], point) in EXCLUDED:
                    continue
                lists = raw.setdefault(key, tuple(defaultdict(list) for _ in columns))
                lists[0][point].append(float(row["prompt_time"]))
                if row["token_size"] == "128":
                    lists[1][point].append(float(row["token_time"]))
                    if row["peak_power"] and float(row["peak_power"]) > 0:
                        lists[2][point].append(float(row["peak_power"]))
                        lists[3][point].append(float(row["average_power"]))
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror})") from None
    except (KeyError, ValueError) as error:
        raise ProfileError(f"{path}: not the measurements expected ({error})") from None
    if not raw:
        raise ProfileError(f"{path}: no measurements")
    return {
        key: Measured(*({p: statistics.median(v) for p, v in part.items()} for part in parts), dict(parts[0]))
        for key, parts in raw.items()
    }


def roofline_slope(model: ModelSpec, machine: MachineSpec) -> float:
    """Least time of a context token: its KV cache over the published bandwidth [ms]."""
    return model.kv_bytes_per_token / (machine.gpus * machine.bandwidth_bytes_per_s) * 1e3


def power(all_measured: dict[Key, Measured], key: Key, machine: MachineSpec) -> dict[str, object]:
    """Power by phase [W]: the A100's measurement, scaled for the H100, cut at the cap."""
    measured = all_measured[(key[0], "a100-80gb", key[2])]
    scale = machine.gpus * 400.0 * (1.0 if key[1] == "a100-80gb" else H100_POWER)
    by_tokens: dict[int, list[float]] = defaultdict(list)
    for (p, b), share in measured.peak_power.items():
        by_tokens[p * b].append(share)
    tokens = sorted(by_tokens)
    batches = sorted(b for p, b in measured.average_power if p == BATCH_PROMPT)
    prompt = isotonic([statistics.fmean(by_tokens[n]) for n in tokens], [len(by_tokens[n]) for n in tokens])
    token = isotonic([measured.average_power[(BATCH_PROMPT, b)] for b in batches], [1] * len(batches))

    def watts(shares: list[float]) -> list[float]:
        return [round(min(s * scale, scale, machine.power_cap_w), 1) for s in shares]

    return {
        "idle_w": round(machine.gpus * machine.max_power_w * machine.idle_power, 1),
        "prompt_tokens": tokens,
        "prompt_w": watts(prompt),
        "token_batch": batches,
        "token_w": watts(token),
    }


_IDLE = "idle power is assumed"
_SCALED = "assumed: the A100's measured curve times 1.75 (ratio of maximum power)"
POWER_NOTE = {
    "a100-80gb": "measured: prompt is the peak power, token the average power of the run with 128 output "
    f"tokens, both made non-decreasing and cut at the GPUs' maximum; {_IDLE}",
    "h100-80gb": f"{_SCALED}; {_IDLE}",
    "h100-80gb-pcap": f"{_SCALED}, cut at the cap of 0.7 of maximum power; {_IDLE}",
}


def profile(all_measured: dict[Key, Measured], key: Key) -> dict[str, object]:
    """One profile as the content of its file."""
    measured = all_measured[key]
    model, machine = models()[key[0]], machines()[key[1]].part(key[2])
    slope = roofline_slope(model, machine)
    prompt, token = PromptFit.fit(measured.prompt_ms).curve(), TokenFit.fit(measured.token_ms, slope)
    e, runs = errors(measured.prompt_ms, measured.token_ms, slope), run_errors(measured.prompt_runs)
    excluded = [why for (name, tp, _), why in EXCLUDED.items() if (name, tp) == (key[0], key[2])]
    derived = "; the source's prompt times of this machine are 1.3 x the H100's" if "pcap" in key[1] else ""
    return {
        "model": key[0],
        "machine": key[1],
        "tensor_parallel": key[2],
        "prompt": {"tokens": list(prompt), "seconds": [round(v / 1e3, 7) for v in prompt.values()]},
        "token": {
            "batch": list(token.base),
            "seconds": [round(v / 1e3, 7) for v in token.base.values()],
            "seconds_per_context_token": round(token.slope / 1e3, 12),
        },
        "power": power(all_measured, key, machine),
        "provenance": {
            "kind": "fitted to measurements",
            "source": SOURCE + derived,
            "method": "profiles/fit.py, described in docs/profiles.md",
            "excluded": "; ".join(excluded) or "nothing",
            "prompt_error": f"mean absolute, held out by (prompt, batch): {e.prompt_held_out:.1f} %; this "
            f"curve, held out, over batches that the paper's rule forms: {e.curve_held_out:.1f} %; this "
            f"curve, all points, none held out: {e.curve_all:.1f} % "
            f"(least possible by batch tokens: {e.least_possible:.1f} %)",
            "prompt_noise": f"mean absolute: single runs against their point's median: {runs.noise:.1f} %; "
            f"held out, a fifth in turn, against the fit to the others: {runs.held_out:.1f} %",
            "token_error": f"mean absolute, held out by (prompt, batch): {e.token_held_out:.1f} %; all "
            f"points, none held out: {e.token_all:.1f} %",
            "never_held_out": "the ends: 128 prompt tokens, largest batch; for token times 8,192 tokens too",
            "context": f"{token.slope / slope:.1f} x the roofline term (KV bytes over published bandwidth), "
            "calibrated on the batch-1 rows",
            "power": POWER_NOTE[key[1]],
        },
    }


def report(all_measured: dict[Key, Measured]) -> str:
    """The table of errors, as Markdown. Its last row is the mean over models and machines on whole machines.

    The mean leaves the capped H100 out: its times are derived from the H100's.
    """
    heads = ("model", "machine", "GPUs", "prompt", "curve", "curve, all", "least", "noise", "80:20")
    heads += ("token", "token, all")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    whole = []
    for key in sorted(all_measured):
        machine = machines()[key[1]]
        slope = roofline_slope(models()[key[0]], machine.part(key[2]))
        measured = all_measured[key]
        values = astuple(errors(measured.prompt_ms, measured.token_ms, slope))
        values = values[:4] + astuple(run_errors(measured.prompt_runs)) + values[4:]
        rows.append(_row(*key, values))
        if key[2] == machine.gpus and machine.power_limit == 1.0:
            whole.append(values)
    if whole:
        means = tuple(statistics.fmean(column) for column in zip(*whole, strict=True))
        rows.append(_row("mean of both models", "a100-80gb, h100-80gb", 8, means))
    return "\n".join(rows) + "\n"


def _row(model: str, machine: str, gpus: int, percent: tuple[float, ...]) -> str:
    return f"| {' | '.join([model, machine, str(gpus), *(f'{v:.1f} %' for v in percent)])} |"


def plot(all_measured: dict[Key, Measured], path: Path) -> None:
    """Fit against measurement for every profile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    keys = sorted(all_measured)
    figure, axes = plt.subplots(len(keys), 3, figsize=(13, 2.6 * len(keys)), squeeze=False)
    for row, key in zip(axes, keys, strict=True):
        measured = all_measured[key]
        slope = roofline_slope(models()[key[0]], machines()[key[1]].part(key[2]))
        curve, token = PromptFit.fit(measured.prompt_ms).curve(), TokenFit.fit(measured.token_ms, slope)
        row[0].loglog(list(curve), list(curve.values()), "-", color="0.4", label="profile")
        for batched, mark in ((False, "o"), (True, "x")):
            points = [(p * b, t) for (p, b), t in measured.prompt_ms.items() if (b > 1) == batched]
            row[0].plot(*zip(*points, strict=True), mark, label="batches of 512" if batched else "one prompt")
        batches = [(b, t) for (p, b), t in sorted(measured.token_ms.items()) if p == BATCH_PROMPT]
        ones = [(p, t) for (p, b), t in sorted(measured.token_ms.items()) if b == 1]
        for axis, points, fit in (
            (row[1], batches, [token.predict((BATCH_PROMPT, b)) for b, _ in batches]),
            (row[2], ones, [token.predict((p, 1)) for p, _ in ones]),
        ):
            xs = [x for x, _ in points]
            axis.semilogx(xs, fit, "-", color="0.4", label="profile")
            axis.plot(xs, [t for _, t in points], "o", label="measured")
            axis.set_ylim(bottom=0)
        row[0].set_title(f"{key[0]} on {key[2]} x {key[1]}", fontsize=9)
        whats = ("prompt: batch tokens", "token: batch at 512", "token: context at batch 1")
        for axis, what in zip(row, whats, strict=True):
            axis.set_xlabel(what, fontsize=8)
            axis.set_ylabel("ms", fontsize=8)
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fit the shipped profiles and state their error.")
    parser.add_argument("--data", type=Path, help="default: splitwise-sim/perf_model.csv under SPLITGYM_DATA")
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here, help="folder of the profiles")
    parser.add_argument("--plot", type=Path, help="also draw fit against measurement")
    options = parser.parse_args()
    folder = data_folder()
    path = options.data or (folder / "splitwise-sim" / "perf_model.csv" if folder else None)
    if path is None:
        parser.error("name the measurements with --data, or set SPLITGYM_DATA")
    try:
        measured = read(path)
    except ProfileError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for key in sorted(measured):
        name = f"{key[0]}_{key[1]}_tp{key[2]}.json"
        (options.out / name).write_text(as_text(profile(measured, key)))
    print(report(measured), end="")
    if options.plot:
        plot(measured, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
