"""`splitgym engine`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from splitgym.config import load_yaml, make
from splitgym.errors import ConfigError


def engine(
    profile: Annotated[
        str, typer.Option(help="MODEL/MACHINE, MODEL/MACHINE/tp4, or a profile file.")
    ] = "llama2-70b/h100-80gb",
    cluster: Annotated[int, typer.Option(min=1, help="Engines in this process, on consecutive ports.")] = 1,
    role: Annotated[
        str, typer.Option(help="both, prompt, token or none; comma-separated for one each.")
    ] = "both",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of the first engine; 0 takes free ones.")] = 8100,
    side_channel_port: Annotated[
        int, typer.Option(help="Where other processes ask for caches; 0 takes a free one.")
    ] = 0,
    admin_port: Annotated[int | None, typer.Option(help="Fault switches, on 127.0.0.1.")] = None,
    time_scale: Annotated[float, typer.Option(help="Simulated seconds a second.")] = 1.0,
    rule: Annotated[str, typer.Option(help="Batching: vllm or splitwise.")] = "vllm",
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an iteration (max_prompt_tokens under splitwise).")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Requests in a batch (max_tasks under splitwise).")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Prompt and output tokens of a request.")] = None,
    mean_output_tokens: Annotated[
        float, typer.Option(help="Mean length of an answer that may end by itself; 0: never does.")
    ] = 150.0,
    bandwidth: Annotated[int | None, typer.Option(help="NIC bytes/s, in place of the profile's.")] = None,
    kv_lease: Annotated[
        float, typer.Option(help="Simulated seconds for which a cache waits to be pulled.")
    ] = 30.0,
    kv_load_failure_policy: Annotated[
        str, typer.Option(help="When a cache cannot be pulled: recompute, or fail as vLLM's default does.")
    ] = "recompute",
    kv_peer: Annotated[
        list[str] | None, typer.Option(help="Host that caches may be pulled from; repeatable.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SPLITGYM_ENGINE_API_KEY", help="Bearer token of /v1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random faults.")] = 0,
    options_file: Annotated[
        Path | None, typer.Option(help="YAML of an EngineOptions; replaces all options.")
    ] = None,
) -> None:
    """Serve OpenAI's protocol as vLLM does, with a profile's timing and no GPU.

    Example: splitgym engine --cluster 4 --port 8100
    """
    try:
        from splitgym.router.engine import EngineOptions, run
    except ModuleNotFoundError as error:
        raise ConfigError(f"`splitgym engine` needs {error.name}: pip install 'splitgym[router]'") from None
    if options_file is not None:
        run(load_yaml(EngineOptions, options_file))
        return
    tokens, requests = (
        ("max_num_batched_tokens", "max_num_seqs") if rule == "vllm" else ("max_prompt_tokens", "max_tasks")
    )
    batching: dict[str, Any] = {"rule": rule, tokens: max_num_batched_tokens, requests: max_num_seqs}
    options = make(
        EngineOptions,
        profile=profile,
        engines=cluster,
        roles=tuple(part.strip() for part in role.split(",")),
        host=host,
        port=port,
        side_channel_port=side_channel_port,
        admin_port=admin_port,
        time_scale=time_scale,
        batching={key: value for key, value in batching.items() if value is not None},
        served_model_name=served_model_name,
        max_model_len=max_model_len,
        mean_output_tokens=mean_output_tokens,
        bandwidth_bytes_per_s=bandwidth,
        kv_lease_s=kv_lease,
        kv_load_failure_policy=kv_load_failure_policy,
        kv_peers=tuple(kv_peer or ()),
        api_key=api_key,
        seed=seed,
    )
    run(options)
