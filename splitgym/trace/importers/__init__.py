"""Traffic that other programs recorded, as traces. Every reader names file and line of what it refuses."""

from splitgym.trace.importers.collect import Clock, Imported
from splitgym.trace.importers.openai import from_openai_jsonl
from splitgym.trace.importers.published import from_burstgpt, from_mooncake
from splitgym.trace.importers.router_log import RouterLog, from_log, read_log
from splitgym.trace.importers.vllm_bench import from_vllm_bench

__all__ = [
    "Clock",
    "Imported",
    "RouterLog",
    "from_burstgpt",
    "from_log",
    "from_mooncake",
    "from_openai_jsonl",
    "from_vllm_bench",
    "read_log",
]
