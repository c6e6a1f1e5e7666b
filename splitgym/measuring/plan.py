"""What is measured, in which order, and how much it asks of the server: known before the first request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from splitgym.errors import ProfileError
from splitgym.profile.curves import BATCH_PROMPT

Kind = Literal["prompt", "token", "mixed", "transfer"]

PROMPTS = (16, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
PROMPT_BATCHES = (2, 3, 4)
BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
CONTEXTS = (128, 1024, 4096)
"""Prompt lengths of the token sweep; the longest only at small batches."""
CONTEXT_TOKENS = 16_384
"""A batch of tokens holds at most so much prompt, so that a sweep stays short."""
OUTPUT_BATCHES = (1, 8)
"""Requests that decode together over long outputs: the shortest prompt, and a context that grows."""
MIXED = ((512, 2), (1024, 4), (1024, 16))
INJECTIONS = 3
"""Prompts that are sent into one batch of decodes, one after the other."""
TRANSFERS = (256, 1024, 4096, 8192)
TRANSFER_OUTPUT = 4
"""Tokens of a transferred request: the iterations after the first are what the first one takes."""
FINER = 20
"""A bandwidth that is not known well is measured up to so many times as often, at its two ends."""


@dataclass(frozen=True)
class Step:
    """One thing to measure.

    Args:
        kind: which curve it is for.
        tokens: of a prompt.
        batch: prompts together (`prompt`), or requests that decode.
        output: tokens of each request in a long `token` step; 0: as short as `Limits.output_tokens` says.
    """

    kind: Kind
    tokens: int
    batch: int = 1
    output: int = 0

    @property
    def name(self) -> str:
        """Of the step in the file of measurements."""
        return f"{self.kind}-{self.size}"

    @property
    def size(self) -> str:
        """Prompt tokens, requests, and the output where it is long."""
        return f"{self.tokens}x{self.batch}" + (f"-out{self.output}" if self.output else "")


@dataclass(frozen=True)
class Limits:
    """How much may be asked of the server.

    Args:
        requests: in all.
        seconds: in all; what is not measured by then can be resumed.
        repeats: of each step.
        output_tokens: iterations of a token step.
        long_outputs: longer outputs, each measured over the shortest prompt at `OUTPUT_BATCHES`.
        max_prompt: longest prompt.
        max_batch: most requests at once.
        pause_s: rest between two runs.
    """

    requests: int = 2_000
    seconds: float = 900.0
    repeats: int = 3
    output_tokens: int = 16
    max_prompt: int = 8_192
    max_batch: int = 64
    pause_s: float = 0.05
    long_outputs: tuple[int, ...] = (64, 256)

    def __post_init__(self) -> None:
        least = {"requests": 1, "repeats": 1, "output_tokens": 4, "max_prompt": 32, "max_batch": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ProfileError(f"{name} is {getattr(self, name)}, expected at least {bound}")
        if any(output <= self.output_tokens for output in self.long_outputs):
            raise ProfileError(f"output_tokens is {self.output_tokens}, expected less than any long output")
        if self.seconds <= 0 or self.pause_s < 0:
            raise ProfileError("seconds must be positive, pause_s at least 0")


@dataclass(frozen=True)
class Plan:
    """Steps in order, each done `limits.repeats` times."""

    steps: tuple[Step, ...]
    limits: Limits
    blocker: int
    """Tokens of the prompt that keeps the server busy while others gather behind it."""
    left_out: tuple[str, ...] = field(default=())

    def requests(self, step: Step) -> int:
        """That one run of a step sends."""
        alone = step.batch == 1
        more = {"prompt": 1 + alone, "token": 0, "mixed": INJECTIONS, "transfer": 2}
        return step.batch + more[step.kind]

    def prompt_tokens(self, step: Step) -> int:
        """That one run of a step has computed."""
        if step.kind == "prompt":
            return self.blocker + (step.batch + (step.batch == 1)) * step.tokens
        if step.kind == "mixed":
            return step.batch * CONTEXTS[0] + INJECTIONS * step.tokens
        return step.batch * step.tokens

    @property
    def all_requests(self) -> int:
        return self.limits.repeats * sum(map(self.requests, self.steps))

    @property
    def all_prompt_tokens(self) -> int:
        return self.limits.repeats * sum(map(self.prompt_tokens, self.steps))

    def lines(self) -> list[str]:
        """The plan for people."""
        out = []
        words = {
            "prompt": "prompt time, by prompt tokens x prompts together",
            "token": "token time, by prompt tokens x requests that decode (-out: long outputs)",
            "mixed": "prompts amid decodes, by prompt tokens x requests that decode",
            "transfer": "KV transfer, by prompt tokens",
        }
        for kind, text in words.items():
            steps = [step for step in self.steps if step.kind == kind]
            if steps:
                sizes = ", ".join(s.size if kind != "transfer" else str(s.tokens) for s in steps)
                out.append(f"{text}: {sizes}")
        limits = self.limits
        out.append(
            f"{limits.repeats} times each: {self.all_requests} requests, {self.all_prompt_tokens} prompt "
            f"tokens; at most {limits.requests} requests and {limits.seconds:g} s"
        )
        return [*out, *(f"left out: {text}" for text in self.left_out)]


def make_plan(
    limits: Limits,
    *,
    max_model_len: int,
    capacity_tokens: int | None,
    transfer: bool,
    prompts: Sequence[int] = PROMPTS,
    batches: Sequence[int] = BATCHES,
) -> Plan:
    """The steps that a server has room for.

    Args:
        limits: how much may be asked.
        max_model_len: prompt and output tokens of a request.
        capacity_tokens: of its KV cache; None where it is not known.
        transfer: two servers were given.
        prompts: lengths of single prompts.
        batches: numbers of requests that decode.

    Raises:
        ProfileError: there is no room for two lengths of prompt.
    """
    longest = min(limits.max_prompt, max_model_len - 1, (capacity_tokens or 1 << 60) - 1)
    room = min(capacity_tokens or 1 << 60, CONTEXT_TOKENS)
    singles = [n for n in prompts if n <= longest]
    if len(singles) < 2:
        raise ProfileError(
            f"prompts of {longest} tokens at most (max_prompt, the server's max_model_len and KV cache): "
            "too short to measure"
        )
    blocker = min(BATCH_PROMPT, singles[-1])
    steps = [Step("prompt", n) for n in singles]
    if blocker == BATCH_PROMPT:
        together = [b for b in PROMPT_BATCHES if b <= limits.max_batch and (b + 1) * BATCH_PROMPT <= room]
        steps += [Step("prompt", BATCH_PROMPT, b) for b in together]
    left_out = [f"prompts over {longest} tokens"] if len(singles) < len(prompts) else []
    output = 2 * limits.output_tokens
    contexts = [n for n in CONTEXTS if n <= longest] or [singles[-1]]
    fitting = []
    for batch in sorted(batches):
        for context in contexts:
            fits = batch <= limits.max_batch and batch * (context + output) <= room
            if fits and context + output <= max_model_len:
                fitting.append(Step("token", context, batch))
    steps += fitting
    most = max((step.batch for step in fitting), default=0)
    for length in limits.long_outputs:
        whole = contexts[0] + 2 * length
        fits_at = [b for b in OUTPUT_BATCHES if b <= most and b * whole <= room and whole <= max_model_len]
        steps += [Step("token", contexts[0], batch, length) for batch in fits_at]
        if not fits_at:
            left_out.append(f"outputs of {length} tokens")
    if most < max(batches):
        left_out.append(f"more than {most} requests at once")
    for tokens, batch in MIXED:
        if batch <= most and tokens <= longest and batch * (CONTEXTS[0] + 4 * output) + tokens <= room:
            steps.append(Step("mixed", tokens, batch))
    if transfer:
        most_tokens = min(longest, max_model_len - TRANSFER_OUTPUT)
        steps += [Step("transfer", n) for n in TRANSFERS if n <= most_tokens]
    return Plan(tuple(steps), limits, blocker, tuple(left_out))
