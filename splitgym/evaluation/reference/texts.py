"""The prose of the page that `splitgym validate --markdown` writes."""

INTRODUCTION = """## Agreement with the paper's simulator

`splitgym validate` runs cases that SplitwiseSim, the simulator published with the Splitwise paper, has run
unmodified, with our specification engine under SplitwiseSim's setup: its time tables as a profile
(`raw_tables`), a contention-free serial link of 200 GiB/s, its KV bytes per token, outputs reserved at the
first decode, its line of waiting tasks (`ageing: all`), output lengths known (`oracle`). All of it is data
and options that anyone can set; no rule knows about the reference.

A case agrees when every request's TTFT and E2E do, to {exact:g} relative; a run of many requests also when
p50, p90 and p99 of TTFT, TBT and E2E agree to {close:.1%} with the same verdict on all nine SLOs. Where
SplitwiseSim is wrong or odd, ours follows the paper. Each such oddity has an onset, found by a rule over
the inputs and our own run; a difference is put down to an oddity only if no request differs before its
onset. Anything else fails the command. TBT is (E2E - TTFT) / (output - 1) for both.

**{summary}.**"""

RUNS = """### Runs

Largest relative difference of a request's TTFT and E2E; percentiles as ours over theirs, less one.
"""

MICRO = """### Small exact cases

`=`: every request agrees. Numbers: it differs, and these oddities had set in before, the first one first.
"""

ODDITIES = (
    (
        "1",
        "decode time ignores context; its table (by prompt x batch) is read with the number of decoding "
        "tasks",
        "fitted in batch and context; that table can be loaded as it is",
    ),
    ("2, 12", "TBT divides by the output", "by output - 1"),
    (
        "3",
        "ageing does not work: prompts age too, and the guard looks at the head of a line whose order has "
        "changed under it, so decodes starve while requests arrive and young prompts jump the queue; memory "
        "goes to prompts before outputs that wait for it",
        "a token task passed over 4 times goes first, prompts and memory are FCFS; theirs is the option "
        "`ageing: all`, which the setup here sets",
    ),
    (
        "4",
        "a prompt over 2,048 tokens that comes to a machine busy with decoding, without its own token task, "
        "waits until that batch changes by itself",
        "it starts at the next iteration",
    ),
    (
        "5",
        "a machine leaves the mixed pool when it is idle, though a cache may be on its way to it, and stays "
        "while it has work of its own kind; one that gets a whole request as the last resort does not enter",
        "it is in it while it works for both phases",
    ),
    (
        "6",
        "simultaneous arrivals are not FIFO; arrival at 0 and an output of 1 token can crash it; the cache "
        "of a request with an output of 1 is shipped although nothing is left to decode",
        "FIFO; a request with one token ends with its prompt",
    ),
    (
        "7",
        "a request too large for a machine blocks the queue for ever",
        "it is refused before the run, by row",
    ),
    ("8", "routing uses true output lengths", "an estimate; the true ones only with `oracle`"),
    ("9", "`kv_token_jsq` never adds pending tokens: one machine gets everything", "it balances"),
    ("10", "the second of two simultaneous prompts is not batched with the first", "the same"),
    (
        "11",
        "a transfer to a full machine is retried every whole second",
        "it starts when memory frees, FCFS",
    ),
    (
        "13",
        "prompts can fill the memory that their outputs need: the machine hangs for ever",
        "the youngest of them restarts",
    ),
)
"""Number, what SplitwiseSim does, what ours does."""
