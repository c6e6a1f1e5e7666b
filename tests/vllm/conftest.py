"""Real vLLM is tested where `SPLITGYM_TEST_VLLM=1`: `make test-vllm`."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
if os.environ.get("SPLITGYM_TEST_VLLM") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def vllm_servers(tmp_path_factory):
    """Two servers, alike."""
    from vllm_server import VllmServer, make_model

    folder = tmp_path_factory.mktemp("vllm")
    model = make_model(folder / "model")
    servers = [VllmServer(model, folder / f"server-{number}.log") for number in range(2)]
    try:
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.stop()
