"""Objects of vLLM's answers that do not hang on a request's form: a cache's ticket, the list of models."""

from typing import Any
from uuid import uuid4


def kv_transfer_params(
    engine_id: str, request_id: str, host: str, port: int, prompt_tokens: int, block_size: int, serial: int
) -> dict[str, Any]:
    """What a prompt engine gives for the token engine (NixlConnector, pull).

    Args:
        engine_id, request_id: name the cache.
        host, port: the side channel.
        prompt_tokens: its size.
        block_size: tokens of a block.
        serial: a number that makes block ids differ.
    """
    blocks = -(-prompt_tokens // block_size)
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[(serial + i) % 1_000_000 for i in range(blocks)]],
        "remote_engine_id": engine_id,
        "remote_request_id": request_id,
        "remote_host": host,
        "remote_port": port,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": prompt_tokens,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": 0,
    }


def models(name: str, root: str, max_model_len: int, created: int) -> dict[str, Any]:
    """Answer of `/v1/models`."""
    permission = {
        "id": f"modelperm-{uuid4().hex[:16]}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
    return {"object": "list", "data": [card]}
