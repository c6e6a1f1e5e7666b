"""`splitgym profile measure` against two real vLLM servers with the NIXL connector."""

import asyncio
import statistics

import aiohttp
import pytest

from splitgym import profile as profiles
from splitgym.measuring import write
from splitgym.measuring.client import Client
from splitgym.measuring.plan import Limits
from splitgym.measuring.run import Servers, measure
from splitgym.measuring.sweep import Sweep
from splitgym.profile import measured_file

LIMITS = Limits(repeats=2, output_tokens=12, max_prompt=1024, max_batch=4, seconds=240)


@pytest.fixture(scope="module")
def found(vllm_servers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    one, two = (server.url for server in vllm_servers)
    outcome = asyncio.run(measure(Servers(one, one, two), LIMITS, folder / "m.jsonl"))
    model = write.find_model(outcome.about, None, None)
    data, _ = write.profile_content(outcome, model, machine=None, gpus=1, name="cpu")
    profile = measured_file.write(folder / "p.json", data)
    print("\n".join(f"{key}: {value}" for key, value in data["provenance"].items()))
    return outcome, data, profile


def test_what_the_server_says_of_itself(found):
    outcome, data, profile = found
    assert outcome.stopped == "" and profile.model.name == "tiny"
    assert (profile.model.layers, profile.model.kv_heads, profile.model.bytes_per_value) == (2, 2, 4)
    assert profile.kv_capacity_tokens == outcome.about.capacity_tokens > 4_000
    assert outcome.kv_bytes_per_token == pytest.approx(profile.kv_bytes_per_token, rel=0.1)


def test_the_curves_are_sane(found):
    """A longer prompt takes longer, and so does a larger batch; the file loads as any other does."""
    outcome, data, profile = found
    assert profile.prompt_time(1024) > 1.5 * profile.prompt_time(128)
    assert profile.token_time(4, 4 * 128) >= profile.token_time(1, 128) > 0
    assert profile.mixed_factor >= 1.0
    assert profiles.from_content(data, "again") == profile
    assert all(t > 0 for _, t in outcome.samples().prompt)


def test_new_requests_take_what_the_profile_says(found, vllm_servers):
    """Prompts and decodes of sizes that were not measured. A shared machine is noisy: within a half."""
    outcome, data, profile = found

    async def ask():
        async with aiohttp.ClientSession() as session:
            client = Client(session, vllm_servers[0].url)
            await client.about()
            sweep = Sweep(client, outcome.plan)
            return [await client.stream(sweep.prompt(700), 20) for _ in range(5)]

    streams = asyncio.run(ask())
    ttft_s = statistics.median(s.first_s - s.sent_s for s in streams)
    tbt_s = statistics.median((s.last_s - s.first_s) / 19 for s in streams)
    overhead_s = statistics.median(outcome.store.facts("overhead_s"))
    print(f"TTFT {ttft_s:.4f} s, profile {profile.prompt_time(700) + overhead_s:.4f}; ", end="")
    print(f"TBT {tbt_s:.5f} s, profile {profile.token_time(1, 710):.5f}")
    assert ttft_s == pytest.approx(profile.prompt_time(700) + overhead_s, rel=0.5)
    assert tbt_s == pytest.approx(profile.token_time(1, 710), rel=0.5)
