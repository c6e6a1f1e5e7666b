"""What shipping the KV cache costs by prompt length, serial and overlapped (Splitwise, figures 14 and 15).

    python benchmarks/kv_transfer.py [--json FILE] [--plot docs/images/kv-transfer.png]

Requests are served one at a time by one prompt and one token machine, and by one machine that does both; the
difference is the cost. The times are simulated: "lowest" and "highest" are over requests, not over repeats.
docs/characterization.md sets the figures beside the paper's.
"""

from pathlib import Path

import numpy as np
from harness import Report, arguments
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitgym import trace
from splitgym.errors import TraceError
from splitgym.evaluation.transfer import Mode, link_bytes_per_s, serve_alone

MODES: tuple[tuple[Mode, str], ...] = (("serial", "serial"), ("layerwise", "overlapped"))
MACHINES = (("a100-80gb", "A100", "C0"), ("h100-80gb", "H100", "C1"))
PROMPTS = np.array([*range(64, 512, 64), 511, 512, *range(640, 2049, 128), *range(2304, 6145, 256)])


def overhead(model: str, machine: str, mode: Mode, prompts, outputs) -> np.ndarray:
    """Added end-to-end time [%], by request."""
    without = serve_alone(model, machine, "none", prompts, outputs).e2e_s
    return 100 * (serve_alone(model, machine, mode, prompts, outputs).e2e_s / without - 1)


def second_token(model: str, machine: str, mode: Mode, prompts) -> np.ndarray:
    """How much later the second token follows the first [%], by request."""
    without = serve_alone(model, machine, "none", prompts, 2).after_first_s
    return 100 * (serve_alone(model, machine, mode, prompts, 2).after_first_s / without - 1)


def add_metrics(report: Report, model: str, traces: dict[str, trace.Trace]) -> None:
    """What the paper states, for one model on both machines."""
    medians = {
        n: (int(np.median(t.prompt_tokens)), int(np.median(t.output_tokens))) for n, t in traces.items()
    }
    both = [
        np.concatenate([getattr(t, f) for t in traces.values()]) for f in ("prompt_tokens", "output_tokens")
    ]
    medians["both"] = (int(np.median(both[0])), int(np.median(both[1])))
    code_prompt = medians["code"][0]
    longer = PROMPTS[PROMPTS >= 512]
    for machine, _, _ in MACHINES:
        name = f"kv.{model}.{machine}"
        report.add(f"{name}.bandwidth", [link_bytes_per_s(model, machine, code_prompt) / 1e9], "GB/s")
        for mode, label in MODES:
            at = f"{name}.{label}"
            served = serve_alone(model, machine, mode, longer, 2)
            report.add(f"{at}.visible.prompts_from_512", (1e3 * served.visible_s).tolist(), "ms")
            share = 100 * served.visible_s / served.prompt_s
            report.add(f"{at}.visible_of_prompt_time", share.tolist(), "%")
            later = second_token(model, machine, mode, [code_prompt])
            report.add(f"{at}.second_token.code_median", later.tolist(), "% later")
            for which, (p, o) in medians.items():
                report.add(
                    f"{at}.e2e.{which}_median_{p}_{o}", overhead(model, machine, mode, [p], [o]).tolist(), "%"
                )
            code = traces["code"]
            rows = slice(None, None, max(1, len(code) // 400))
            spread = overhead(model, machine, mode, code.prompt_tokens[rows], code.output_tokens[rows])
            report.add(f"{at}.e2e.code_requests", spread.tolist(), "%")


def draw(model: str, output_tokens: int, path: Path) -> None:
    """Visible transfer time, and its share of the end-to-end time, by prompt length."""
    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for machine, title, color in MACHINES:
        for mode, label in MODES:
            served = serve_alone(model, machine, mode, PROMPTS, 2)
            share = overhead(model, machine, mode, PROMPTS, output_tokens)
            style = {
                "color": color,
                "linestyle": "--" if mode == "serial" else "-",
                "label": f"{title}, {label}",
            }
            left.plot(PROMPTS, 1e3 * served.visible_s, **style)
            right.plot(PROMPTS, share, **style)
    left.set(xlabel="prompt [tokens]", ylabel="visible transfer time [ms]", ylim=(0, None))
    right.set(xlabel="prompt [tokens]", ylabel="added end-to-end time [%]", ylim=(0, None))
    left.set_title("from the prompt's end to the cache's arrival", fontsize="medium")
    right.set_title(f"requests with {output_tokens} output tokens", fontsize="medium")
    for axes in (left, right):
        axes.set_xlim(0, PROMPTS[-1])
        axes.axvline(512, color="0.6", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    note = {"transform": left.get_xaxis_transform(), "va": "center", "fontsize": 8, "color": "0.4"}
    left.text(570, 0.48, "overlap from\n512 tokens on", **note)
    left.legend(fontsize="small", loc="upper left")
    figure.suptitle(
        f"KV cache transfer of {model}, 8 GPUs a machine, one request at a time", fontsize="medium"
    )
    FigureCanvasAgg(figure).print_png(str(path))


def sizes(name: str) -> trace.Trace:
    """The original trace, or its generated stand-in where the original is not on this machine."""
    try:
        return trace.load(name)
    except TraceError:
        return trace.load(f"{name}-synth")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the figure")
    parser.add_argument("--model", action="append", help="default: bloom-176b and llama2-70b")
    options = parser.parse_args()
    traces = {"code": sizes("azure-code"), "conv": sizes("azure-conv")}
    models = options.model or ["bloom-176b", "llama2-70b"]
    report = Report(f"KV cache transfer, medians of {', '.join(t.name for t in traces.values())}")
    for model in models:
        add_metrics(report, model, traces)
    report.finish(options.json)
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(models[0], int(np.median(traces["code"].output_tokens)), options.plot)


if __name__ == "__main__":
    main()
